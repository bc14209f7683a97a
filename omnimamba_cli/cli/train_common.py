"""The options of the training commands, in groups; and `show`, which prints a run's events."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from omnimamba_cli.cli import options
from omnimamba_cli.cli.config_file import ConfigFile, effective
from omnimamba_cli.cli.output import Bar, Output, printable
from omnimamba_cli.config import BAD_SHARE
from omnimamba_cli.errors import ExitCode

if TYPE_CHECKING:
    from omnimamba_cli.config import Task
    from omnimamba_cli.engine.starting import StageSettings
    from omnimamba_cli.train.events import Event, Plan, Progress
    from omnimamba_cli.train.loop_config import LoopConfig
    from omnimamba_cli.train.stages import Recipe

OutputDir = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where the result and its log go.")]
Workers = Annotated[int | None, typer.Option("--workers", min=0, help="Processes that read pictures.")]
MaxBadShare = Annotated[
    float,
    typer.Option(
        "--max-bad-share",
        min=0,
        max=1,
        help="Stop when more than this share of the samples cannot be used; fewer are skipped and named.",
    ),
]
ImageRoot = Annotated[
    Path | None, typer.Option("--image-root", metavar="DIR", help="Pictures are named relative to it.")
]
TokenizerFile = Annotated[
    Path | None, typer.Option("--tokenizer", metavar="FILE", help="tokenizer.json of a fresh model.")
]
TrainSeed = Annotated[int, typer.Option("--seed", envvar="OMNIMAMBA_SEED", min=0, help="Of weights, data, dropout.")]
Paper = "default: the paper's, see above."

STOPPED = {"stopped by SIGINT": ExitCode.INTERRUPTED, "stopped by SIGTERM": ExitCode.TERMINATED}


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """How a run goes, whatever it trains."""

    weight_decay: Annotated[float, typer.Option("--weight-decay", min=0, help="On matrices.")] = 0.0
    clip: Annotated[float, typer.Option("--clip", help="Largest norm of the gradient; inf: any.")] = 1.0
    accumulate: Annotated[int, typer.Option("--accumulate", min=1, help="Micro-batches a step; saves memory.")] = 1
    ema: Annotated[
        float, typer.Option("--ema", help="Decay of the weights' average, which is then saved; 0: none.")
    ] = 0.0
    log_every: Annotated[int, typer.Option("--log-every", min=1, help="Steps between lines of metrics.jsonl.")] = 50
    save_every: Annotated[
        int, typer.Option("--save-every", min=0, help="Steps between snapshots; 0: by time alone.")
    ] = 0
    save_minutes: Annotated[
        float, typer.Option("--save-minutes", min=0, help="Minutes between snapshots; 0: by steps.")
    ] = 10.0
    keep: Annotated[int, typer.Option("--keep", min=1, help="Snapshots that are kept.")] = 2
    max_minutes: Annotated[
        float, typer.Option("--max-minutes", min=0, help="Save and stop after this; 0: no limit.")
    ] = 0.0
    clock_minutes: Annotated[
        float,
        typer.Option(
            "--clock-minutes",
            min=0,
            help="End the learning rate's curve after this time, whatever the step; not repeatable to the bit. 0: off.",
        ),
    ] = 0.0
    workers: Workers = None
    max_bad_share: MaxBadShare = BAD_SHARE
    seed: TrainSeed = 0
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write the metrics for TensorBoard too, into DIR/tensorboard.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """What a stage of the language model starts from and trains; without a value the paper's."""

    image_root: ImageRoot = None
    tokenizer: TokenizerFile = None
    vision: Annotated[
        Path | None, typer.Option("--vision", metavar="DIR|FILE", help="Image encoders (vision.safetensors).")
    ] = None
    vq: Annotated[
        Path | None,
        typer.Option(
            "--vq",
            metavar="DIR|FILE",
            help="Image tokenizer (vq.safetensors). Of another codebook size, with drawing trained: the image "
            "vocabulary starts anew.",
        ),
    ] = None
    vocabulary: Annotated[
        Literal["decoupled", "shared"] | None,
        typer.Option("--vocabulary", help="Two tables, or one of text and codes.", show_default="as --init has it"),
    ] = None
    lora: Annotated[
        Literal["task", "shared", "none"] | None,
        typer.Option("--lora", help="A pair for each task, one for both, or none.", show_default="as --init has it"),
    ] = None
    unfreeze: Annotated[
        list[str] | None, typer.Option("--unfreeze", metavar="PART", help="Train this part too; all: everything.")
    ] = None
    caption_dropout: Annotated[
        float | None,
        typer.Option("--caption-dropout", min=0, max=1, help="Share of captions left out, so that guidance works."),
    ] = None
    steps: Annotated[int | None, typer.Option("--steps", min=1, help=f"Optimiser steps; {Paper}")] = None
    lr: Annotated[float | None, typer.Option("--lr", help=f"Peak learning rate; {Paper}")] = None
    warmup: Annotated[int | None, typer.Option("--warmup", min=0, help=f"Steps until the peak; {Paper}")] = None
    checkpoint_activations: Annotated[
        bool,
        typer.Option("--checkpoint-activations", help="Compute layers again for the gradient: less memory, slower."),
    ] = False
    eval_every: Annotated[
        int,
        typer.Option(
            "--eval-every",
            min=0,
            help="Steps between evaluations on held-out data: loss, a sheet of captions, one of drawings; the best "
            "model is kept in DIR/best. 0: none.",
        ),
    ] = 0
    eval_samples: Annotated[
        int, typer.Option("--eval-samples", min=1, help="Held-out samples of each task that are read.")
    ] = 256


@dataclass(frozen=True, kw_only=True)
class CallOptions:
    """One call of a training command."""

    config: ConfigFile = None
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest snapshot, if there is one.")] = (
        False
    )
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show plan, parameters and memory, take two steps, write nothing.")
    ] = False
    force: options.Force = False
    device: options.Device = "auto"
    dtype: options.Dtype = "auto"


def loop_config(given: LoopOptions, call: CallOptions, *, steps: int, lr: float, warmup: int) -> "LoopConfig":
    """The loop's settings, with the number format for the device."""
    from omnimamba_cli.engine.runtime import pick_device
    from omnimamba_cli.engine.training import pick_precision
    from omnimamba_cli.train.loop_config import LoopConfig

    values = {
        name: value for name, value in vars(given).items() if name not in ("workers", "max_bad_share", "tensorboard")
    }
    precision = pick_precision(call.dtype, pick_device(call.device)[0])
    return LoopConfig(steps=steps, lr=lr, warmup=warmup, precision=precision, **values)


def stage_settings(
    ctx: typer.Context,
    row: "Recipe",
    what: StageOptions,
    loop: LoopOptions,
    call: CallOptions,
    *,
    data: "Mapping[Task, Sequence[Path] | None]",
    eval_data: "Mapping[Task, Sequence[Path] | None]",
    batch: "Mapping[Task, int | None]",
    **others: Any,  # Any: the fields of StageSettings that one stage has
) -> "StageSettings":
    """A stage's settings: what was given, and the paper's row for the rest."""
    from omnimamba_cli.engine.training import StageSettings

    papers = {"steps": row.steps, "lr": row.lr, "warmup": row.warmup}
    papers |= {"batch_mmu": row.batch_mmu, "batch_t2i": row.batch_t2i}
    given = {"steps": what.steps, "lr": what.lr, "warmup": what.warmup}
    given |= {f"batch_{task}": rows for task, rows in batch.items()}
    chosen: dict[str, Any] = papers | {name: value for name, value in given.items() if value is not None}
    curve = loop_config(loop, call, steps=chosen["steps"], lr=chosen["lr"], warmup=chosen["warmup"])
    return StageSettings(
        loop=replace(curve, eval_every=what.eval_every),
        data_mmu=tuple(data.get("mmu") or ()),
        data_t2i=tuple(data.get("t2i") or ()),
        eval_mmu=tuple(eval_data.get("mmu") or ()),
        eval_t2i=tuple(eval_data.get("t2i") or ()),
        eval_samples=what.eval_samples,
        batch_mmu=chosen["batch_mmu"],
        batch_t2i=chosen["batch_t2i"],
        image_root=what.image_root,
        vocabulary=what.vocabulary,
        lora=what.lora,
        tokenizer=what.tokenizer,
        vision=what.vision,
        vq=what.vq,
        caption_dropout=what.caption_dropout,
        unfreeze=tuple(what.unfreeze or ()),
        checkpoint_activations=what.checkpoint_activations,
        workers=default_workers(loop.workers),
        max_bad_share=loop.max_bad_share,
        tensorboard=loop.tensorboard,
        device=call.device,
        resume=call.resume,
        force=call.force,
        dry_run=call.dry_run,
        options=effective(ctx, **chosen, batch=chosen[f"batch_{next(iter(batch))}"]),
        **others,
    )


def default_workers(workers: int | None) -> int:
    """The given number, or as many as there are processors, at most 16."""
    from omnimamba_cli.engine.runtime import processors

    return min(16, processors()) if workers is None else workers


def show(events: "Iterable[Event]", out: Output, label: str, total: int) -> None:
    """Runs to the end: progress and remarks on stderr, the path of the result on stdout (as JSON with --json)."""
    from omnimamba_cli.engine.runtime import is_first_process
    from omnimamba_cli.train.events import Finished, Progress, Saved, Skipped

    if not is_first_process():
        for event in events:  # the first process reports for all; but each reports its own bad samples
            if isinstance(event, Skipped):
                _remark(event, out)
        return
    last: Saved | None = None
    ending: ExitCode | None = None
    with out.progress(label, total=total) as bar:
        shown = 0
        for event in events:
            match event:
                case Progress():
                    shown = _progress(event, out, bar, shown)
                case Saved():
                    out.detail(f"saved {event.path}")
                    last = event
                case Finished(complete=False):
                    out.note(f"stopped at step {event.step:,} of {event.steps:,}: {event.reason}; --resume continues")
                    ending = STOPPED.get(event.reason)
                case _:
                    _remark(event, out)
    if last is None:
        return
    if out.json:
        out.record({"path": str(last.path), "step": last.step})
    else:
        out.line(str(last.path))
    if ending is not None:
        raise typer.Exit(ending)


def _remark(event: "Event", out: Output) -> None:
    """Prints an event that only has to be printed."""
    from omnimamba_cli.train.events import Evaluated, Note, Plan, Skipped

    match event:
        case Note():
            out.note(event.text)
        case Skipped():
            out.note(f"skipped {printable(event.name)}: {printable(event.reason)}")
        case Evaluated():
            values = "  ".join(f"{name} {value:.4g}" for name, value in event.values.items())
            out.note(f"step {event.step:,}/{event.steps:,}  {values}{'  (best)' if event.best else ''}")
        case Plan():
            _plan(event, out)


def _plan(event: "Plan", out: Output) -> None:
    """--dry-run's result: the parts as a table, then each fact on a line; with --json one object."""
    if out.json:
        parts = [{"part": name, "parameters": whole, "trained": trained} for name, whole, trained in event.parts]
        out.record({"kind": "plan" if parts else "steps", **({"parts": parts} if parts else {}), **event.facts})
        return
    if event.parts:
        out.table(["part", "parameters", "trained"], [[n, f"{w:,}", f"{t:,}" if t else "-"] for n, w, t in event.parts])
    for name, value in event.facts.items():
        if name.endswith("_bytes"):
            out.line(f"{name.removesuffix('_bytes')}: {int(value) / 1e9:.2f} GB")
        else:
            out.line(f"{name.replace('_', ' ')}: {f'{value:,}' if isinstance(value, int) else value}")


def _progress(event: "Progress", out: Output, bar: Bar, shown: int) -> int:
    """Moves the bar to the event's step, which is returned; without a terminal, a line instead."""
    values = "  ".join(f"{name} {value:.4g}" for name, value in event.values.items())
    loss = event.values.get("loss")
    bar.advance(event.step - shown, detail=None if loss is None else f"loss {loss:.4f}")
    if values and not out.stderr.isatty():
        out.note(f"step {event.step:,}/{event.steps:,}  {values}  {event.seconds:.0f} s")
    elif values:
        out.detail(f"step {event.step:,}/{event.steps:,}  {values}  {event.seconds:.0f} s")
    return event.step
