"""Options of the training commands, each once, and the loop that shows a run's events."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from omnimamba_cli.cli.options import DtypeChoice
from omnimamba_cli.cli.output import Bar, Output
from omnimamba_cli.errors import ExitCode

if TYPE_CHECKING:
    from omnimamba_cli.train.events import Event
    from omnimamba_cli.train.loop import LoopConfig

OutputDir = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where the result and its log go.")]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Optimiser steps; default: the paper's.")]
Rate = Annotated[float | None, typer.Option("--lr", help="Peak learning rate; default: the paper's.")]
Warmup = Annotated[int | None, typer.Option("--warmup", min=0, help="Steps until the peak; default: the paper's.")]
WeightDecay = Annotated[float, typer.Option("--weight-decay", min=0, help="On matrices.")]
Clip = Annotated[float, typer.Option("--clip", help="Largest norm of the gradient.")]
Accumulate = Annotated[int, typer.Option("--accumulate", min=1, help="Micro-batches a step; saves memory.")]
Ema = Annotated[float, typer.Option("--ema", help="Decay of the weights' average, which is then saved; 0: none.")]
LogEvery = Annotated[int, typer.Option("--log-every", min=1, help="Steps between lines of metrics.jsonl.")]
SaveEvery = Annotated[int, typer.Option("--save-every", min=0, help="Steps between snapshots; 0: by time alone.")]
SaveMinutes = Annotated[float, typer.Option("--save-minutes", min=0, help="Minutes between snapshots; 0: by steps.")]
Keep = Annotated[int, typer.Option("--keep", min=1, help="Snapshots that are kept.")]
MaxMinutes = Annotated[float, typer.Option("--max-minutes", min=0, help="Save and stop after this; 0: no limit.")]
ClockMinutes = Annotated[
    float,
    typer.Option(
        "--clock-minutes",
        min=0,
        help="End the learning rate's curve after this time, whatever the step; not repeatable to the bit. 0: off.",
    ),
]
Workers = Annotated[int | None, typer.Option("--workers", min=0, help="Processes that read pictures.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue from the newest snapshot, if there is one.")]
Compile = Annotated[bool, typer.Option("--compile", help="Fuse operations first; pays on long runs.")]
TrainSeed = Annotated[int, typer.Option("--seed", envvar="OMNIMAMBA_SEED", min=0, help="Of weights, data, dropout.")]
ImageRoot = Annotated[
    Path | None, typer.Option("--image-root", metavar="DIR", help="Pictures are named relative to it.")
]
Unfreeze = Annotated[
    list[str] | None, typer.Option("--unfreeze", metavar="PART", help="Train this part too; all: everything.")
]
TokenizerFile = Annotated[
    Path | None, typer.Option("--tokenizer", metavar="FILE", help="tokenizer.json of a fresh model.")
]
VisionFile = Annotated[
    Path | None, typer.Option("--vision", metavar="DIR|FILE", help="Image encoders (vision.safetensors).")
]
VQFile = Annotated[Path | None, typer.Option("--vq", metavar="DIR|FILE", help="Image tokenizer (vq.safetensors).")]
CaptionDropout = Annotated[
    float | None,
    typer.Option("--caption-dropout", min=0, max=1, help="Share of captions left out, so that guidance works."),
]

STOPPED = {"stopped by SIGINT": ExitCode.INTERRUPTED, "stopped by SIGTERM": ExitCode.TERMINATED}


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every run's loop takes, as given."""

    weight_decay: float
    clip: float
    accumulate: int
    ema: float
    log_every: int
    save_every: int
    save_minutes: float
    keep: int
    max_minutes: float
    clock_minutes: float
    seed: int


def loop_config(common: Common, *, steps: int, lr: float, warmup: int, device: str, dtype: DtypeChoice) -> "LoopConfig":
    """The loop's settings, number format chosen for the device."""
    from omnimamba_cli.engine.runtime import pick_device
    from omnimamba_cli.engine.training import pick_precision
    from omnimamba_cli.train.loop import LoopConfig

    return LoopConfig(
        steps=steps,
        lr=lr,
        warmup=warmup,
        precision=pick_precision(dtype, pick_device(device)[0]),
        **vars(common),
    )


def default_workers(workers: int | None) -> int:
    """The given number, or one for each processor but one, at most 16."""
    import os

    if workers is not None:
        return workers
    return max(1, min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))


def show(events: "Iterable[Event]", out: Output, label: str, total: int) -> None:
    """Runs to the end: progress and remarks on stderr, the result's path on stdout (events as JSON with --json)."""
    from omnimamba_cli.engine.runtime import is_first_process
    from omnimamba_cli.train.events import Finished, Note, Progress, Saved

    if not is_first_process():
        for _ in events:  # the first of several processes tells
            pass
        return
    ending: ExitCode | None = None
    with out.progress(label, total=total) as bar:
        shown = 0
        for event in events:
            if isinstance(event, Note):
                out.note(event.text)
            elif isinstance(event, Progress):
                shown = _progress(event, out, bar, shown)
            elif isinstance(event, Saved):
                out.detail(f"saved {event.path}")
                last = event
            elif isinstance(event, Finished) and not event.complete:
                out.note(f"stopped at step {event.step:,} of {event.steps:,}: {event.reason}; --resume continues")
                ending = STOPPED.get(event.reason)
    if out.json:
        out.record({"path": str(last.path), "step": last.step})
    else:
        out.line(str(last.path))
    if ending is not None:
        raise typer.Exit(ending)


def _progress(event: "Event", out: Output, bar: Bar, shown: int) -> int:
    from omnimamba_cli.train.events import Progress

    assert isinstance(event, Progress)
    values = "  ".join(f"{name} {value:.4g}" for name, value in event.values.items())
    loss = event.values.get("loss")
    bar.advance(event.step - shown, detail=None if loss is None else f"loss {loss:.4f}")
    if values and not out.stderr.isatty():
        out.note(f"step {event.step:,}/{event.steps:,}  {values}  {event.seconds:.0f} s")
    elif values:
        out.detail(f"step {event.step:,}/{event.steps:,}  {values}  {event.seconds:.0f} s")
    return event.step
