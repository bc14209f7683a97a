"""What a benchmark yields: rows of one system at one length, as data and as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from omnimamba_cli.engine.bench_machine import Machine, Memory
from omnimamba_cli.engine.bench_timing import Sample, Timing

TaskName = Literal["text", "image", "prefill", "train", "stage2"]
Method = Literal["sampled", "full", "extrapolated", "repeated", "computed", "failed"]
METHODS: Mapping[Method, str] = {
    "sampled": "steps timed at sampled positions, the sum over all positions by linear interpolation",
    "full": "every token generated and timed",
    "extrapolated": "as sampled or full, but the later positions follow from the last one timed and the work of a step",
    "repeated": "the whole work timed",
    "computed": "not run: bytes over the measured read rate",
    "failed": "not measured",
}
GIB = 1 << 30
Facts = dict[str, Any]  # Any: a JSON object


@dataclass(frozen=True, kw_only=True)
class Row:
    """One system, one task, one length. Times in seconds; a step is one token of every row of the batch."""

    task: TaskName
    system: str
    opponent: bool
    what: str  # exactly what is measured, in words
    machine: Machine
    dtype: torch.dtype
    batch: int
    method: Method
    seq_len: int | None = None  # tokens generated, read or trained on; None: a picture
    prefix: int = 0  # tokens before them
    step_s: float | None = None  # mean over all steps
    total_s: float | None = None  # prefix and all steps, or the whole picture
    ttft: Timing | None = None  # time to the first token, prefix included
    steps: Timing | None = None  # of the last position, or of the whole work
    samples: tuple[Sample, ...] = ()
    tokens: int = 0  # in total_s without the prefix, all rows
    pictures: int = 0
    floor_s: float | None = None  # least time for the steps that bytes and operations allow
    work_s: float | None = None  # measured time of the same steps, to compare with the floor
    mfu: float | None = None  # share of the hardware's operations that the model itself needs
    weight_bytes: int = 0  # that a step reads
    context_bytes: int = 0  # state or cache that the last step moves
    memory: Memory | None = None
    build_s: float = 0.0
    kernels: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    paper_s: float | None = None  # the paper's total at this length, on its machine
    error: str | None = None

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens a second, of all rows together."""
        return self.tokens / self.work_s if self.work_s and self.tokens else None

    @property
    def pictures_per_s(self) -> float | None:
        """Pictures a second, of all rows together."""
        return self.pictures / self.total_s if self.pictures and self.total_s else None

    @property
    def floor_fraction(self) -> float | None:
        """floor_s / work_s: 1.0 is as fast as the measured ceilings allow."""
        return self.floor_s / self.work_s if self.floor_s and self.work_s else None

    def to_dict(self) -> Facts:
        """A JSON object; every field in every row, null where it does not apply."""
        steps, memory = self.steps, self.memory or Memory(None, None, None)
        return {
            "kind": "row",
            "task": self.task,
            "system": self.system,
            "opponent": self.opponent,
            "what": self.what,
            "method": self.method,
            "method_means": METHODS[self.method],
            "seq_len": self.seq_len,
            "prefix": self.prefix,
            "batch": self.batch,
            "ms_per_token": _ms(self.step_s),
            "tokens_per_s": _short(self.tokens_per_s),
            "images_per_s": _short(self.pictures_per_s),
            "seconds_total": _short(self.total_s),
            "ttft_ms": _ms(self.ttft.median if self.ttft else None),
            "n": len(steps.seconds) if steps else 0,
            "median_ms": _ms(steps.median if steps else None),
            "spread_ms": _ms(steps.spread if steps else None),
            "warmup_s": _short(sum(t.warmup_s for t in self._timings())),
            "build_s": _short(self.build_s),
            "positions": [s.position for s in self.samples],
            "positions_ms": [_ms(s.timing.median) for s in self.samples],
            "positions_spread_ms": [_ms(s.timing.spread) for s in self.samples],
            "positions_bytes": [s.memory.main for s in self.samples],
            "peak_allocated_bytes": memory.allocated,
            "peak_device_bytes": memory.device,
            "peak_rss_bytes": memory.rss,
            "floor_s": _short(self.floor_s),
            "floor_fraction": _short(self.floor_fraction),
            "mfu": _short(self.mfu),
            "weight_bytes": self.weight_bytes,
            "context_bytes": self.context_bytes,
            "read_bytes_per_s": round(self.machine.read_bytes_per_s),
            "flops_per_s": round(self.machine.flops_per_s),
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.machine.device),
            "device_name": self.machine.name,
            "kernels": dict(self.kernels),
            "versions": dict(self.machine.versions),
            "paper_seconds": self.paper_s,
            "notes": list(self.notes),
            "error": self.error,
        }

    def _timings(self) -> list[Timing]:
        sampled = [s.timing for s in self.samples] or ([self.steps] if self.steps else [])
        return [*sampled, *([self.ttft] if self.ttft else [])]


def _short(value: float | None) -> float | None:
    """Six significant digits: no clock here knows more."""
    return None if value is None else float(f"{value:.6g}")


def _ms(seconds: float | None) -> float | None:
    return _short(None if seconds is None else 1e3 * seconds)


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headers and rows for people; a column that is empty everywhere is left out."""
    whole = ["system", "length", "ms/token", "spread", "tokens/s", "images/s", "total s", "paper s", "first ms"]
    headers = [*whole, "GiB", "of floor", "MFU", "how"]
    cells = [_cells(row) for row in rows]
    kept = [i for i in range(len(headers)) if i == 0 or any(line[i] for line in cells)]
    return [headers[i] for i in kept], [[line[i] for i in kept] for line in cells]


def _cells(row: Row) -> list[str]:
    steps = row.steps
    main = row.memory.main if row.memory else None
    return [
        row.system,
        "" if row.seq_len is None else f"{row.seq_len:,}",
        _number(None if row.step_s is None or row.task == "image" else 1e3 * row.step_s),
        f"{100 * steps.spread / steps.median:.1f} %" if steps and len(steps.seconds) > 1 else "",
        _number(row.tokens_per_s),
        _number(row.pictures_per_s),
        _number(row.total_s),
        _number(row.paper_s),
        _number(1e3 * row.ttft.median if row.ttft else None),
        "" if main is None else f"{main / GIB:.2f}",
        "" if row.floor_fraction is None else f"{100 * row.floor_fraction:.0f} %",
        "" if row.mfu is None else f"{100 * row.mfu:.1f} %",
        row.error.split(":")[0] if row.error else row.method,
    ]


def _number(value: float | None) -> str:
    """Three significant digits, no exponents."""
    if value is None:
        return ""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"
