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
from omnimamba_cli.engine.bench_floor import transformer_floor
from omnimamba_cli.engine.bench_machine import Machine, free_bytes, measure_machine
from omnimamba_cli.engine.bench_measure import Cell, blank, measure
from omnimamba_cli.engine.bench_opponents import LARGE, Opponent, check_names, chosen, opponent
from omnimamba_cli.engine.bench_rows import Row, TaskName
from omnimamba_cli.engine.bench_stage2 import Stage2, Stage2Bench, described, held_bytes, machine_of, rows_of
from omnimamba_cli.engine.bench_systems import (
    Loaded,
    OmniMambaSystem,
    System,
    config_of,
    load_ours,
    number_format,
    own_name,
    prefix_of,
)
from omnimamba_cli.engine.bench_transformers import TransformerSystem
from omnimamba_cli.engine.runtime import parameter_count, pick_device
from omnimamba_cli.errors import memory_reason
from omnimamba_cli.model.quantized import Quantization
from omnimamba_cli.presets import PRESETS

EXTRA = 2_048  # positions past a length: the prefix, and steps timed at its end
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
    device_reason: str
    dtype_reason: str


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
    check_names(config.baselines)  # before anything is loaded
    name = config.model or ("1.3b" if torch.cuda.is_available() and config.device != "cpu" else "nano")
    if config.task == "stage2":
        yield from stage2(config, name)
        return
    lengths = list(config.seq_lens or LENGTHS.get(config.task, (0,)))
    place, device_reason = pick_device(config.device)
    if place.index is not None and place.type == "cuda":
        torch.cuda.set_device(place)  # graphs are recorded on the present one
    model, start = config_of(name), time.perf_counter()
    loaded, failure = _loaded(config, name, model, place, max(lengths) + EXTRA)
    built_s = time.perf_counter() - start
    names = [n for n in chosen(config.baselines, model, config.task) if _can(n, config, model)]
    on_cpu = place.type == "cpu"
    kind, dtype_reason = number_format(config.dtype, config.task, place, model)
    machine = measure_machine(place, kind)
    clock = Clock(config.seconds_for(place), len(lengths) * (1 + len(names)))
    yield Begun(machine, name, clock.cells, device_reason, dtype_reason)
    if config.model is None and on_cpu:
        yield Note("without a GPU the small model is measured; --model 1.3b takes minutes and 8 GB")
    runner = Runner(config, machine, model, lengths, clock)
    rows: list[Row] = []
    ours = None if loaded is None else partial(OmniMambaSystem, loaded, config.batch)
    for row in runner.rows(own_name(model, config.quantize), None, ours, built_s, failure):
        rows.append(row)
        yield row
    del loaded, ours  # its memory must not count for the others
    for other in names:
        who = opponent(other, model)
        build = partial(TransformerSystem, other, who, config.task, place, kind, config.batch)
        for row in runner.rows(other, who, build, 0.0):
            rows.append(row)
            yield row
    if names and config.task == "text":
        for length in lengths:
            yield transformer_floor(machine, model, kind, config.batch, length)
    yield from bench_claims.verdicts(rows, small=parameter_count(model) <= LARGE)


def _loaded(
    config: BenchConfig, name: str, model: ModelConfig, device: torch.device, positions: int
) -> tuple[Loaded | None, str | None]:
    """Our own model, or what the rows say when memory does not hold it."""
    # what is read from a file stays there
    item = 16 if config.task == "train" else number_format(config.dtype, config.task, device, model)[0].itemsize
    needed = item * parameter_count(model) if config.task == "train" or name in PRESETS else 0
    if (lack := _lack(device, needed)) is not None:
        return None, lack
    try:
        return load_ours(name, config.device, config.dtype, config.task, positions, config.quantize), None
    except (RuntimeError, MemoryError) as error:
        failure = memory_failure(error)
    release(device)
    return None, failure


def stage2(config: BenchConfig, name: str) -> Iterator[Event]:
    """The paper's stage-2 step as one row, also where memory runs out."""
    device, device_reason = pick_device(config.device)
    bench = Stage2Bench(
        model=name,
        device=config.device,
        dtype=config.dtype,  # type: ignore[arg-type]  # the same words
        rows_mmu=config.rows_mmu,
        rows_t2i=config.rows_t2i,
        checkpoint_activations=config.checkpoint_activations,
        budget_s=config.seconds_for(device),
    )
    machine, rows, model = machine_of(bench, device), rows_of(bench, device), config_of(name)
    step: Stage2 | None = None
    row: Row | None = None
    failure = _lack(device, held_bytes(model))  # activations come on top
    try:
        step = None if failure else Stage2(bench, machine)
        yield Begun(machine, name, 1, device_reason, "training" if config.dtype == "auto" else "asked for")
        row = None if step is None else step.measure()
    except (RuntimeError, MemoryError) as error:
        failure = memory_failure(error)
    if row is None:
        next_command = None if step is None else step.in_less_memory()
        row = Row(
            task="stage2",
            system=model.name,
            opponent=False,
            what=described(bench, model, rows),
            machine=machine,
            dtype=machine.dtype,
            batch=sum(rows.values()),
            method="failed",
            notes=(f"next: {next_command}",) if next_command else (),
            error=failure,
        )
    yield row


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

    def rows(
        self,
        name: str,
        who: Opponent | None,
        build: Callable[[], System] | None,
        built_s: float,
        failure: str | None = None,
    ) -> Iterator[Row]:
        """A row for every length, whatever happens; the system is freed afterwards. `who` None is our own model.

        `failure`: why it could not even be loaded.
        """
        start = time.perf_counter()
        system, failure = None, failure or self._too_large(who)
        try:
            system = None if failure or build is None else build()
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
        read = cell.prefix if cell.task in ("text", "image") else cell.seq_len
        needed = system.memory_bytes(read, cell.prefix + cell.seq_len)
        if (lack := _lack(self.machine.device, needed)) is not None:
            return blank(system, cell, "failed")(error=lack)
        try:
            return measure(system, cell)
        except (RuntimeError, MemoryError) as error:
            return blank(system, cell, "failed")(error=memory_failure(error))

    def _too_large(self, who: Opponent | None) -> str | None:
        """Why an opponent's weights do not fit a CPU's memory; a GPU says so itself."""
        if who is None:
            return None
        # training holds weights, gradients and two moments in float32
        size = 16 if self.config.task == "train" else self.machine.dtype.itemsize
        return _lack(self.machine.device, size * who.config.weights)

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


def _lack(device: torch.device, needed: int) -> str | None:
    """What a row says of work that a CPU's memory does not hold; a GPU says so itself.

    A machine that swaps, or whose kernel ends the process, is worse than a row that says no.
    """
    free = free_bytes(device) if device.type == "cpu" else None
    if free is None or needed <= free:
        return None
    return f"out of memory: needs {needed / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are free"


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
