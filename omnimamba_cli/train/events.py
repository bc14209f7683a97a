"""What a training run tells whoever runs it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Note:
    """A remark a user should read once: what trains, what was skipped, what was fallen back to."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A sample that could not be used. Every process tells of its own."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The state of a run, every log_every steps; also a line of metrics.jsonl."""

    step: int
    steps: int
    values: dict[str, float]  # means since the last report: losses, grad_norm; and lr, tokens_per_s
    seconds: float  # of training, earlier parts of a resumed run included


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """Losses on held-out data; while this is looked at, the model has its averaged weights and is in eval mode."""

    step: int
    steps: int
    values: dict[str, float]  # eval_loss, and eval_loss_mmu or eval_loss_t2i or both
    best: bool  # lower than ever before in this run


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run would do: --dry-run's result."""

    parts: list[tuple[str, int, int]]  # name, parameters, of them trained
    facts: dict[str, str | int | float]  # what each is called -> how much


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
    """The end: complete, or stopped in time with a snapshot to resume from."""

    step: int
    steps: int
    complete: bool
    reason: str
    path: Path | None = None
    values: dict[str, float] = field(default_factory=dict)  # the last report's


Event = Note | Skipped | Progress | Evaluated | Plan | Saved | Sheet | Finished
