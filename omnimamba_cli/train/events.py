"""The events that a training run yields."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Note:
    """A remark that a user should read once: what trains, what was skipped, what is used instead of what."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A sample that could not be used. Every process reports its own."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The state of a run, every log_every steps; also a line of metrics.jsonl."""

    step: int
    steps: int
    values: dict[str, float]  # losses and grad_norm (means since the last report), lr, tokens_per_s
    seconds: float  # of training, with the earlier parts of a resumed run


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """Losses on held-out data. Until the next event is asked for, the model has its averaged weights, in eval mode."""

    step: int
    steps: int
    values: dict[str, float]  # eval_loss, and eval_loss_mmu or eval_loss_t2i or both
    best: bool  # lower than ever before in this run


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run would do: --dry-run's result."""

    parts: list[tuple[str, int, int]]  # name, number of parameters, how many of them train
    facts: dict[str, str | int | float]  # name -> value


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A snapshot or a result on disk."""

    path: Path
    step: int


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Pictures to look at."""

    image: "Image.Image"
    step: int


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The end of a run: complete, or stopped early with a snapshot to resume from."""

    step: int
    steps: int
    complete: bool
    reason: str
    path: Path | None = None
    values: dict[str, float] = field(default_factory=dict)  # of the last report


Event = Note | Skipped | Progress | Evaluated | Plan | Saved | Sheet | Finished
