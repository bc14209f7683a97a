"""Measures one system at one length: the four tasks. Raises what the system raises when memory runs out."""

import time
from dataclasses import dataclass, replace
from functools import partial

import torch

from omnimamba_cli.engine.bench_claims import paper_seconds
from omnimamba_cli.engine.bench_machine import Machine, Memory, MemoryMeter, synchronize
from omnimamba_cli.engine.bench_rows import Method, Row, TaskName
from omnimamba_cli.engine.bench_systems import OmniMambaSystem, System
from omnimamba_cli.engine.bench_timing import Sample, Timing, integrate, sample_positions, time_steps, time_whole
from omnimamba_cli.engine.bench_transformers import TransformerSystem
from omnimamba_cli.train.optimiser import adamw

FULL_SAMPLES = 32  # positions that are reported when every token is generated
PATIENCE_S = 10.0  # work that cannot be interrupted is begun if it takes no longer than this, whatever the budget


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One system, one task, one length, and the time there is for it."""

    task: TaskName
    machine: Machine
    seq_len: int  # of no meaning for a picture
    prefix: int
    budget_s: float
    full: bool
    build_s: float


def measure(system: System, cell: Cell) -> Row:
    """The row of one cell."""
    if cell.task == "text":
        return _text_in_full(system, cell) if cell.full else _text(system, cell)
    if cell.task == "prefill":
        return _prefill(system, cell)
    return _train(system, cell) if cell.task == "train" else _picture(system, cell)


def blank(system: System, cell: Cell, method: Method) -> partial[Row]:
    """A row with what all of a system's rows share."""
    opponent = not isinstance(system, OmniMambaSystem)
    return partial(
        Row,
        task=cell.task,
        system=system.name,
        opponent=opponent,
        what=system.what(cell.task),
        machine=cell.machine,
        dtype=system.dtype,
        batch=system.batch,
        method=method,
        seq_len=None if cell.task == "image" else cell.seq_len,
        build_s=cell.build_s,
        kernels=system.kernels(),
    )


def reading_s(system: System, cell: Cell, length: int | None = None) -> float:
    """About how long reading a prefix takes, by its operations. It cannot be interrupted."""
    return system.flops(length or cell.prefix) / cell.machine.flops_per_s


def skipped(system: System, cell: Cell, length: int) -> Row:
    """The row of a cell for which there is not enough time."""
    needed = reading_s(system, cell, length)
    why = f"no time: reading {length:,} tokens takes about {needed:.0f} s, {cell.budget_s:.0f} s were left for it"
    return blank(system, cell, "failed")(error=why)


def peak(readings: list[Memory]) -> Memory:
    """The highest of each kind."""

    def highest(values: list[int | None]) -> int | None:
        return max((v for v in values if v is not None), default=None)

    return Memory(
        highest([m.allocated for m in readings]),
        highest([m.device for m in readings]),
        highest([m.rss for m in readings]),
    )


# text


def _text(system: System, cell: Cell) -> Row:
    device, meter = cell.machine.device, MemoryMeter(cell.machine.device)
    begun = time.perf_counter()
    ttft, notes, reading = None, [], reading_s(system, cell)
    meter.reset()
    if reading <= max(PATIENCE_S, cell.budget_s):
        ttft = time_whole(lambda: system.first_token(cell.prefix), device, cell.budget_s / 4)
    elif isinstance(system, TransformerSystem) and system.opponent.cache == "none":
        return skipped(system, cell, cell.prefix)  # its steps read everything, too
    else:
        notes.append(f"the prefix was not read and is not in the total: it takes about {reading:.0f} s")
    readings = [meter.read()]
    positions = sample_positions(cell.prefix, cell.seq_len)
    samples: list[Sample] = []
    for number, position in enumerate(positions):
        left = cell.budget_s - (time.perf_counter() - begun)
        if samples:
            last = samples[-1]
            expected = last.timing.median * system.work(position) / system.work(last.position)
            if expected > left:
                break
        samples.append(_sample(system, position, meter, max(0.0, left) / (len(positions) - number)))
    seconds = [s.timing.median for s in samples]
    last = samples[-1]
    for position in positions[len(samples) :]:
        seconds.append(last.timing.median * system.work(position) / system.work(last.position))
    steps_s = integrate(positions, seconds, cell.prefix, cell.seq_len)
    readings += [s.memory for s in samples]
    reached = len(samples) == len(positions)
    if not reached:
        notes.append(f"timed up to {last.position:,} tokens; the rest follows from the work of a step")
    return _text_row(
        system, cell, "sampled" if reached else "extrapolated", ttft, samples, steps_s, peak(readings), notes
    )


def _sample(system: System, position: int, meter: MemoryMeter, budget_s: float) -> Sample:
    """Time steps at one position. Getting there (reading a prefix, filling a cache, recording) does not count."""
    start = time.perf_counter()
    steps = system.steps(position)
    next(steps)
    synchronize(meter.device)
    first_s = time.perf_counter() - start
    if 2 * first_s > budget_s and meter.device.type == "cpu":
        return Sample(position, Timing((first_s,), 0.0), meter.read())
    meter.reset()
    timing = time_steps(steps, meter.device, budget_s - first_s)
    return Sample(position, replace(timing, warmup_s=timing.warmup_s + first_s), meter.read())


def _text_in_full(system: System, cell: Cell) -> Row:
    device, meter = cell.machine.device, MemoryMeter(cell.machine.device)
    if reading_s(system, cell) > max(PATIENCE_S, cell.budget_s):
        return skipped(system, cell, cell.prefix)
    deadline = time.perf_counter() + cell.budget_s
    ttft = time_whole(lambda: system.first_token(cell.prefix), device, cell.budget_s / 4)
    meter.reset()
    synchronize(device)
    tokens = system.generate(cell.prefix, cell.seq_len)
    next(tokens)
    synchronize(device)
    size = max(1, (cell.seq_len - 1) // FULL_SAMPLES)
    samples: list[Sample] = []
    steps_s, done = 0.0, 1
    while done < cell.seq_len and (not samples or time.perf_counter() < deadline):
        count, start = 0, time.perf_counter()
        while count < min(size, cell.seq_len - done) and (count == 0 or time.perf_counter() < deadline):
            next(tokens)
            count += 1
        synchronize(device)
        block = time.perf_counter() - start
        samples.append(Sample(cell.prefix + done, Timing((block / count,), 0.0), meter.read()))
        steps_s, done = steps_s + block, done + count
    notes = []
    if done < cell.seq_len:
        said = f"{done:,} tokens were generated in the time there was (--seconds)"
        notes.append(f"{said}; the rest follows from the work of a step")
        steps_s += _rest(system, samples[-1], cell.prefix + done, cell.seq_len - done)
    # the first token comes with the prefix; its share is a mean step
    steps_s *= cell.seq_len / max(1, cell.seq_len - 1)
    return _text_row(system, cell, "extrapolated" if notes else "full", ttft, samples, steps_s, meter.read(), notes)


def _rest(system: System, last: Sample, start: int, count: int) -> float:
    """Seconds that `count` steps from `start` on would take, by the last one timed."""
    positions = sample_positions(start, count)
    each = last.timing.median / system.work(last.position)
    return integrate(positions, [each * system.work(position) for position in positions], start, count)


def _text_row(
    system: System,
    cell: Cell,
    method: Method,
    ttft: Timing | None,
    samples: list[Sample],
    steps_s: float,
    memory: Memory,
    notes: list[str],
) -> Row:
    rate, end = cell.machine.read_bytes_per_s, cell.prefix + cell.seq_len - 1
    weights, context = system.step_bytes("text", end)
    middle = sum(system.step_bytes("text", cell.prefix + cell.seq_len // 2))  # linear: the middle is the mean
    steps = samples[-1].timing if samples else None
    if method == "full":
        steps = Timing(tuple(s.timing.median for s in samples), 0.0)
    return blank(system, cell, method)(
        prefix=cell.prefix,
        step_s=steps_s / cell.seq_len,
        total_s=(ttft.median if ttft else 0.0) + steps_s * (cell.seq_len - 1) / cell.seq_len,
        ttft=ttft,
        steps=steps,
        samples=tuple(samples),
        tokens=system.batch * cell.seq_len,
        floor_s=cell.seq_len * middle / rate,
        work_s=steps_s,
        weight_bytes=weights,
        context_bytes=context,
        memory=memory,
        notes=tuple(notes),
        paper_s=paper_seconds(system.name, cell.seq_len),
    )


# whole passes


def _prefill(system: System, cell: Cell) -> Row:
    if reading_s(system, cell, cell.seq_len) > max(PATIENCE_S, cell.budget_s):
        return skipped(system, cell, cell.seq_len)
    meter = MemoryMeter(cell.machine.device)
    meter.reset()
    timing = time_whole(lambda: system.first_token(cell.seq_len), cell.machine.device, cell.budget_s)
    return _whole(system, cell, timing, meter.read(), passes=1)


def _train(system: System, cell: Cell) -> Row:
    device, meter = cell.machine.device, MemoryMeter(cell.machine.device)
    meter.reset()
    module, loss = system.train_loss(cell.seq_len)
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = adamw(parameters, lr=1e-6, weight_decay=0.0)

    def step() -> None:
        with torch.autocast(device.type, dtype=system.dtype, enabled=system.dtype != torch.float32):
            value = loss()
        value.backward()  # type: ignore[no-untyped-call]  # torch leaves it so
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    timing = time_whole(step, device, cell.budget_s)
    return _whole(system, cell, timing, meter.read(), passes=3)  # backward is two passes


def _whole(system: System, cell: Cell, timing: Timing, memory: Memory, passes: int) -> Row:
    weights, _ = system.step_bytes(cell.task, 0)
    by_operations = passes * system.flops(cell.seq_len) / cell.machine.flops_per_s
    return blank(system, cell, "repeated")(
        step_s=timing.median / cell.seq_len,
        total_s=timing.median,
        steps=timing,
        tokens=system.batch * cell.seq_len,
        floor_s=max(by_operations, passes * weights / cell.machine.read_bytes_per_s),
        work_s=timing.median,
        weight_bytes=weights,
        memory=memory,
        notes=() if timing.warmup_s else ("the one run is also the warm-up: there was no time for another",),
    )


# pictures


def _picture(system: System, cell: Cell) -> Row:
    if isinstance(system, OmniMambaSystem):
        return _own_picture(system, cell)
    assert isinstance(system, TransformerSystem)
    work = system.opponent.picture
    assert work is not None  # the runner leaves out who draws nothing
    if work.way == "rounds":
        return _rounds(system, cell, work.rounds)
    return _codes(system, cell, work.prompt, work.tokens)


def _own_picture(system: OmniMambaSystem, cell: Cell) -> Row:
    device, meter = cell.machine.device, MemoryMeter(cell.machine.device)
    meter.reset()
    codes = time_whole(system.codes, device, cell.budget_s / 2)
    drawn = system.codes()
    pixels = time_whole(lambda: system.pixels(drawn), device, cell.budget_s / 4)
    count = system.config.vq.codes
    weights, context = system.step_bytes("image", 0)
    return blank(system, cell, "repeated")(
        step_s=codes.median / count,
        total_s=codes.median + pixels.median,
        steps=codes,
        tokens=system.batch * count,
        pictures=system.batch,
        floor_s=count * (weights + context) / cell.machine.read_bytes_per_s,
        work_s=codes.median,
        weight_bytes=weights,
        context_bytes=context,
        memory=meter.read(),
        notes=(f"{codes.median:.4g} s for the codes (prompt included), {pixels.median:.4g} s for the pixels",),
        prefix=system.config.t2i_prefix,
    )


def _rounds(system: TransformerSystem, cell: Cell, rounds: int) -> Row:
    work, meter = system.opponent.picture, MemoryMeter(cell.machine.device)
    assert work is not None
    meter.reset()
    timing = time_steps(system.rounds(), cell.machine.device, cell.budget_s)
    total = rounds * timing.median
    floor = rounds * system.flops(work.prompt + work.tokens) / cell.machine.flops_per_s
    return blank(system, cell, "sampled")(
        total_s=total,
        steps=timing,
        pictures=system.batch,
        floor_s=floor,
        work_s=total,
        memory=meter.read(),
        prefix=work.prompt,
        notes=(f"one round timed, {rounds} make a picture",),
    )


def _codes(system: TransformerSystem, cell: Cell, prompt: int, count: int) -> Row:
    device, meter = cell.machine.device, MemoryMeter(cell.machine.device)
    meter.reset()
    ttft = time_whole(lambda: system.first_token(prompt), device, cell.budget_s / 4)
    positions = sample_positions(prompt, count, 3)
    samples = []
    for position in positions:
        timing = time_steps(system.steps(position), device, cell.budget_s / (2 * len(positions)))
        samples.append(Sample(position, timing, meter.read()))
    steps_s = integrate(positions, [s.timing.median for s in samples], prompt, count)
    weights, context = system.step_bytes("image", prompt + count)
    middle = sum(system.step_bytes("image", prompt + count // 2))
    return blank(system, cell, "sampled")(
        step_s=steps_s / count,
        total_s=ttft.median + steps_s,
        ttft=ttft,
        steps=samples[-1].timing,
        samples=tuple(samples),
        tokens=system.batch * count,
        pictures=system.batch,
        floor_s=count * middle / cell.machine.read_bytes_per_s,
        work_s=steps_s,
        weight_bytes=weights,
        context_bytes=context,
        memory=peak([s.memory for s in samples]),
        prefix=prompt,
    )
