"""A whole benchmark: this program's model, its opponents, the floor, the paper's claims.

Yields events and prints nothing. Running out of memory becomes a row.
"""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from omnimamba_cli.config import ModelConfig
from omnimamba_cli.engine import bench_claims
from omnimamba_cli.engine.bench_claims import Verdict
from omnimamba_cli.engine.bench_machine import Machine, free_bytes, measure_machine
from omnimamba_cli.engine.bench_measure import Cell, blank, measure
from omnimamba_cli.engine.bench_opponents import LARGE, LLAMA_1B3, Opponent, chosen, matched, opponent
from omnimamba_cli.engine.bench_rows import Row, TaskName
from omnimamba_cli.engine.bench_stage2 import Stage2Bench, prepared
from omnimamba_cli.engine.bench_systems import OmniMambaSystem, System, load_ours
from omnimamba_cli.engine.bench_timing import integrate, sample_positions
from omnimamba_cli.engine.bench_transformers import TransformerSystem
from omnimamba_cli.engine.runtime import parameter_count, pick_device
from omnimamba_cli.errors import memory_reason
from omnimamba_cli.model.quantized import Quantization

QUESTION = 27  # tokens; with 729 patches and four special tokens the published model's prefix is 760
EXTRA = 2_048  # positions past a length: the prefix, and steps timed at its end
FLOOR = "transformer-floor"
LENGTHS: dict[TaskName, tuple[int, ...]] = {"text": (1_000, 16_000), "prefill": (760, 16_000), "train": (512,)}


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What to measure."""

    task: TaskName = "text"
    seq_lens: Sequence[int] = ()  # tokens; none: the task's own
    batch: int = 1
    model: str | None = None  # None: the published size on a GPU, nano on a CPU
    baselines: Sequence[str] = ("auto",)
    device: str = "auto"
    dtype: str = "auto"
    quantize: Quantization | None = None  # our own model's weights, in one byte each
    full: bool = False
    budget_s: float | None = None  # for everything; None: see seconds_for
    rows_mmu: int | None = None  # stage2 alone; None: the paper's for one GPU, on a CPU few
    rows_t2i: int | None = None
    checkpoint_activations: bool = False

    def seconds_for(self, device: torch.device) -> float:
        """The time for everything: budget_s, or 100 s on a CPU and 600 s elsewhere."""
        return self.budget_s or (100.0 if device.type == "cpu" else 600.0)


@dataclass(frozen=True)
class Begun:
    """The machine has been measured; `cells` rows will follow."""

    machine: Machine
    model: str
    cells: int


@dataclass(frozen=True)
class Note:
    """A remark on how it is measured."""

    text: str


Event = Begun | Note | Row | Verdict


@dataclass
class Clock:
    """Shares the time that is left among the cells that are left."""

    budget_s: float
    cells: int
    begun: float = field(default_factory=time.perf_counter)

    def share(self) -> float:
        """Seconds for the next cell."""
        left = max(0.0, self.budget_s - (time.perf_counter() - self.begun))
        share = left / max(1, self.cells)
        self.cells -= 1
        return share


def run(config: BenchConfig) -> Iterator[Event]:
    """Measures everything and yields rows as they are done, then the verdicts on the paper's claims.

    Raises UsageError for an unknown baseline, and what Session raises for a model, device or dtype.
    """
    name = config.model or ("1.3b" if torch.cuda.is_available() and config.device != "cpu" else "nano")
    if config.task == "stage2":
        yield from stage2(config, name)
        return
    lengths = list(config.seq_lens or LENGTHS.get(config.task, (0,)))
    start = time.perf_counter()
    loaded = load_ours(name, config.device, config.dtype, config.task, max(lengths) + EXTRA, config.quantize)
    built_s = time.perf_counter() - start
    names = [n for n in chosen(config.baselines, loaded.config) if _can(n, config, loaded.config)]
    machine = measure_machine(loaded.device, loaded.dtype)
    clock = Clock(config.seconds_for(loaded.device), len(lengths) * (1 + len(names)))
    yield Begun(machine, name, clock.cells)
    if config.model is None and loaded.device.type == "cpu":
        yield Note("without a GPU the small model is measured; --model 1.3b takes minutes and 8 GB")
    runner = Runner(config, machine, loaded.config, lengths, clock)
    model, place, kind = loaded.config, loaded.device, loaded.dtype
    rows: list[Row] = []
    for row in runner.rows(loaded.name, None, partial(OmniMambaSystem, loaded, config.batch), built_s):
        rows.append(row)
        yield row
    del loaded  # its memory must not count for the others
    for other in names:
        who = opponent(other, model)
        build = partial(TransformerSystem, other, who, config.task, place, kind, config.batch)
        for row in runner.rows(other, who, build, 0.0):
            rows.append(row)
            yield row
    if names and config.task == "text":
        for length in lengths:
            yield transformer_floor(config, machine, model, kind, length)
    if parameter_count(model) > LARGE:
        yield from bench_claims.verdicts(rows)


def stage2(config: BenchConfig, name: str) -> Iterator[Event]:
    """The paper's stage-2 step as one row, also where memory runs out."""
    device, _ = pick_device(config.device)
    bench = Stage2Bench(
        model=name,
        device=config.device,
        dtype=config.dtype,  # type: ignore[arg-type]  # the same words
        rows_mmu=config.rows_mmu,
        rows_t2i=config.rows_t2i,
        checkpoint_activations=config.checkpoint_activations,
        budget_s=config.seconds_for(device),
    )
    machine, step = prepared(bench)
    yield Begun(machine, name, 1)
    try:
        yield step.measure()
    except (RuntimeError, MemoryError) as error:
        next_command = step.in_less_memory()
        yield Row(
            task="stage2",
            system=step.config.name,
            opponent=False,
            what=step.what(),
            machine=machine,
            dtype=machine.dtype,
            batch=sum(step.rows.values()),
            method="failed",
            notes=(f"next: {next_command}",) if next_command else (),
            error=memory_failure(error),
        )


def _can(name: str, config: BenchConfig, model: ModelConfig) -> bool:
    """Whether an opponent does the task."""
    return config.task != "image" or opponent(name, model).picture is not None


@dataclass
class Runner:
    """Measures systems, each at all lengths."""

    config: BenchConfig
    machine: Machine
    model: ModelConfig
    lengths: list[int]
    clock: Clock

    def rows(self, name: str, who: Opponent | None, build: Callable[[], System], built_s: float) -> Iterator[Row]:
        """A row for every length, whatever happens; the system is freed afterwards. `who` None is our own model."""
        start = time.perf_counter()
        system, failure = None, self._too_large(who)
        try:
            system = None if failure else build()
        except (RuntimeError, MemoryError) as error:
            failure = memory_failure(error)
        built_s += time.perf_counter() - start
        for length in self.lengths:
            cell = Cell(
                task=self.config.task,
                machine=self.machine,
                seq_len=length,
                prefix=prefix_of(self.model),
                budget_s=self.clock.share(),
                full=self.config.full,
                build_s=built_s,
            )
            yield self._failed(name, who, cell, failure) if system is None else self._row(system, cell)
            release(self.machine.device)
        del system
        release(self.machine.device)

    def _row(self, system: System, cell: Cell) -> Row:
        length = cell.prefix + cell.seq_len
        free, needed = free_bytes(self.machine.device), system.memory_bytes(length) - system.memory_bytes(0)
        if self.machine.device.type == "cpu" and free is not None and needed > free:
            # a machine that swaps, or whose kernel ends the process, is worse than a row that says no
            return blank(system, cell, "failed")(error=_lacks(needed, free))
        try:
            return measure(system, cell)
        except (RuntimeError, MemoryError) as error:
            return blank(system, cell, "failed")(error=memory_failure(error))

    def _too_large(self, who: Opponent | None) -> str | None:
        """Why an opponent's weights do not fit a CPU's memory; a GPU says so itself."""
        free = free_bytes(self.machine.device)
        if self.machine.device.type != "cpu" or free is None or who is None:
            return None
        # training holds weights, gradients and two moments in float32
        size = 16 if self.config.task == "train" else self.machine.dtype.itemsize
        needed = size * who.config.weights
        return _lacks(needed, free) if needed > free else None

    def _failed(self, name: str, who: Opponent | None, cell: Cell, failure: str | None) -> Row:
        """The row of a system that could not even be built."""
        return Row(
            task=cell.task,
            system=name,
            opponent=who is not None,
            what=who.what if who is not None else "this program's own model",
            machine=self.machine,
            dtype=self.machine.dtype,
            batch=self.config.batch,
            method="failed",
            seq_len=None if cell.task == "image" else cell.seq_len,
            prefix=cell.prefix,
            build_s=cell.build_s,
            error=failure,
        )


def prefix_of(model: ModelConfig) -> int:
    """Tokens before the text: a picture's patches, four special tokens and a question of usual length."""
    return model.patches + 4 + QUESTION


def _lacks(needed: int, free: int) -> str:
    return f"out of memory: needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"


def memory_failure(error: Exception) -> str:
    """The error of a row for which memory ran out. Raises any other error again."""
    reason = memory_reason(error)
    if reason is None:
        raise error
    return f"out of memory: {reason}"


def release(device: torch.device) -> None:
    """Free memory that is no longer used."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def transformer_floor(
    config: BenchConfig, machine: Machine, model: ModelConfig, dtype: torch.dtype, length: int
) -> Row:
    """The least time of a cached Transformer of this size: reading weights and cache once a step, at the read rate."""
    large = parameter_count(model) > LARGE
    size = LLAMA_1B3 if large else matched(model)
    who = "JanusFlow's LLaMA-1.3B" if large else "a Transformer of this model's width and weights"
    prefix = prefix_of(model)
    weights = dtype.itemsize * size.step_weights
    per_token = dtype.itemsize * config.batch * size.kv_values

    def step_s(position: int) -> float:
        return (weights + per_token * position) / machine.read_bytes_per_s

    positions = sample_positions(prefix, length)
    total = integrate(positions, [step_s(p) for p in positions], prefix, length)
    return Row(
        task="text",
        system=FLOOR,
        opponent=True,
        what=f"the line that {who} cannot pass with a cache: bytes of weights and cache over the read rate",
        machine=machine,
        dtype=dtype,
        batch=config.batch,
        method="computed",
        seq_len=length,
        prefix=prefix,
        step_s=total / length,
        total_s=total,
        tokens=config.batch * length,
        floor_s=total,
        work_s=total,
        weight_bytes=weights,
        context_bytes=per_token * (prefix + length - 1),
    )
