"""Training commands, callable from Python: stage 1 and 2 of the language model. Yields events, prints nothing."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Literal

import torch
from accelerate import Accelerator
from PIL import Image

from omnimamba_cli.config import Task
from omnimamba_cli.data.codes import DrawnCodes
from omnimamba_cli.data.talks import Conversations
from omnimamba_cli.engine import curves, samples
from omnimamba_cli.engine.board import Board, summary_writer
from omnimamba_cli.engine.memory import memory_explained
from omnimamba_cli.engine.opening import OpenData, check_held_codes, open_data, said
from omnimamba_cli.engine.rehearsal import rehearse, state_bytes
from omnimamba_cli.engine.run_folder import (
    BEST,
    changed_settings,
    check_output,
    has_snapshot,
    held,
    prepare_output,
    save_result,
    write_settings,
)
from omnimamba_cli.engine.runtime import pick_device
from omnimamba_cli.engine.starting import StageSettings, Start, own_memory, start_of
from omnimamba_cli.errors import UsageError
from omnimamba_cli.train.events import Evaluated, Event, Finished, Note, Progress, Saved, Sheet, Skipped
from omnimamba_cli.train.held_out import HeldOutLanguage
from omnimamba_cli.train.language import LanguageJob, Objective
from omnimamba_cli.train.loop import Loop
from omnimamba_cli.train.loop_config import LoopConfig, Precision, accelerator
from omnimamba_cli.train.stages import freeze, part_of, trained_parts

__all__ = [
    "Evaluated",
    "Event",
    "Finished",
    "LoopConfig",
    "Note",
    "Progress",
    "Saved",
    "Sheet",
    "Skipped",
    "StageSettings",
    "train",
]

PrecisionChoice = Literal["auto", "bf16", "fp16", "fp32"]


def pick_precision(choice: PrecisionChoice, device: torch.device) -> Precision:
    """accelerate's name for the number format of the forward pass; weights and optimizer stay float32."""
    if choice != "auto":
        names: dict[str, Precision] = {"bf16": "bf16", "fp16": "fp16", "fp32": "no"}
        return names[choice]
    if device.type != "cuda":
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


@contextmanager
def stop_signals() -> Iterator[Callable[[], str | None]]:
    """The first SIGINT or SIGTERM asks the loop to save and stop; a second one interrupts at once."""
    asked: list[str] = []

    def note(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    kept = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: f"stopped by {asked[0]}" if asked else None
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _held_out(settings: StageSettings, start: Start) -> HeldOutLanguage | None:
    """Data for evaluations during the run. Raises UsageError for evaluations without data, or data without them."""
    given: dict[Task, tuple[Path, ...]] = {"mmu": settings.eval_mmu, "t2i": settings.eval_t2i}
    paths = {task: given[task] for task in settings.tasks if given[task]}
    every = settings.loop.eval_every
    if bool(every) != bool(paths):
        option = "--eval-data FILE" if settings.task else "--eval-mmu FILE, --eval-t2i FILE or both"
        what = "--eval-every needs held-out data" if every else "held-out data are read only with --eval-every"
        raise UsageError(what, hint=option if every else "--eval-every STEPS")
    if not every:
        return None
    talks = drawings = None
    if "mmu" in paths:
        root, questions = settings.image_root, settings.questions
        talks = Conversations(paths["mmu"], root, start.config, start.tokenizer, questions=questions)
    if "t2i" in paths:
        check_held_codes(paths["t2i"])
        drawings = DrawnCodes(paths["t2i"], replace(start.config, caption_dropout=0.0), start.tokenizer)
    return HeldOutLanguage(
        talks,
        drawings,
        weights={"mmu": settings.weight_mmu, "t2i": settings.weight_t2i},
        rows={"mmu": max(1, settings.batch_mmu), "t2i": max(1, settings.batch_t2i)},
        samples=settings.eval_samples,
    )


def train(settings: StageSettings) -> Iterator[Event]:
    """Run a stage to its end, or until time is up; the output is a model directory either way.

    Started as one of several processes (torchrun, accelerate launch), all train and the first one tells and writes.
    With dry_run two steps are taken and nothing is written.

    Raises UsageError, CheckpointError, DataError or InputError before the first step where something does not fit.
    """
    device, _ = pick_device(settings.device)
    if not settings.dry_run:
        check_output(settings.output, resume=settings.resume, force=settings.force)
    if settings.tensorboard:
        summary_writer()
    trained_parts(settings.stage, settings.task, settings.unfreeze)
    start = start_of(settings)
    yield from (Note(text=text) for text in start.notes)
    data = open_data(settings, start)
    held_out = _held_out(settings, start)
    accelerate = accelerator(device, settings.loop.precision)
    yield from data.said
    if held_out is not None:
        for kept, what in ((held_out.talks, "held-out mmu"), (held_out.drawings, "held-out t2i")):
            yield from said(kept, what, settings.loop.seed) if kept is not None else ()
    trained = freeze(start.model, start.towers, settings.stage, settings.task, settings.unfreeze)
    writes = accelerate.is_main_process and not settings.dry_run
    with held(settings.output, writes), stop_signals() as should_stop, _memory(settings, start):
        if writes:
            yield from prepare_output(settings.output, resume=settings.resume)
        accelerate.wait_for_everyone()
        job = _job(settings, start, data, accelerate)
        loop = Loop(
            job,
            settings.loop,
            accelerate,
            settings.output,
            data=data.files,
            held_out=held_out,
            should_stop=should_stop,
        )
        if settings.dry_run:
            yield from rehearse(loop, settings, start)
            return
        if settings.resume and has_snapshot(settings.output):
            yield from loop.resume()
            yield from changed_settings(settings.output, settings)
        yield Note(text=_summary(start, trained, accelerate.device, settings.loop.precision, accelerate.num_processes))
        yield from _run(loop, settings, start)
    loop.end()


def _memory(settings: StageSettings, start: Start) -> AbstractContextManager[None]:
    """Turns running out of memory into an error that names the stage's options."""
    given: dict[Task, int] = {"mmu": settings.batch_mmu, "t2i": settings.batch_t2i}
    rows = {f"--batch-{task}" if settings.task is None else "--batch": given[task] for task in settings.tasks}
    parameters = [p for module in (start.model, start.towers) if module is not None for p in module.parameters()]
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    held = state_bytes(sum(p.numel() for p in parameters), trained, average=bool(settings.loop.ema))
    return memory_explained(
        rows,
        settings.output,
        accumulate=settings.loop.accumulate,
        recompute=settings.checkpoint_activations,
        held_bytes=held["held_bytes"],
    )


def _job(settings: StageSettings, start: Start, data: OpenData, accelerate: Accelerator) -> LanguageJob:
    """The stage's job, its modules on this process's device."""
    device = accelerate.device
    own_memory(start, device)
    weights: dict[Task, float] = {"mmu": settings.weight_mmu, "t2i": settings.weight_t2i}
    objective = Objective(start.model, start.towers, weights, recompute=settings.checkpoint_activations)
    return LanguageJob(
        objective.to(device),
        device=device,
        seed=settings.loop.seed,
        rows={"mmu": settings.batch_mmu, "t2i": settings.batch_t2i},
        talks=data.talks,
        drawings=data.drawings,
        encode=data.encoder(device),
        workers=settings.workers,
        accumulate=settings.loop.accumulate,
        max_bad_share=settings.max_bad_share,
        ranks=accelerate.num_processes,
        rank=accelerate.process_index,
    )


def _run(loop: Loop, settings: StageSettings, start: Start) -> Iterator[Event]:
    """The loop's events; writes the run's files as they occur, in the first process alone."""
    main, output = loop.accelerate.is_main_process, settings.output
    board = Board(output, loop.step) if main and settings.tensorboard else None
    if main:
        write_settings(output, settings, start.config)
    for event in loop.run():
        if board is not None:
            board.write(event)
        if isinstance(event, Evaluated) and main and not loop.sharded:  # of shards no process has all
            yield event
            yield from _looked_at(event, loop, settings, start)
        elif isinstance(event, Finished):
            loop.close()
            if main:
                save_result(output, start, settings.storage)
                curves.write(output)
            loop.accelerate.wait_for_everyone()
            yield Saved(path=output, step=event.step)
            yield replace(event, path=output)
        else:
            yield event


def _looked_at(event: Evaluated, loop: Loop, settings: StageSettings, start: Start) -> Iterator[Event]:
    """After an evaluation: writes the sheets, the curves so far, and the model if it is the best yet."""
    output, held_out = settings.output, loop.held_out
    assert isinstance(held_out, HeldOutLanguage)
    sheets: dict[str, Image.Image | None] = {}
    if held_out.talks is not None:
        sheets["captions"] = samples.caption_sheet(start, held_out.talks, held_out.chosen("mmu"))
    if held_out.drawings is not None:
        sheets["drawn"] = samples.drawn_sheet(start, held_out.drawings, held_out.chosen("t2i"))
    for name, sheet in sheets.items():
        if sheet is not None:
            yield Saved(path=samples.save_sheet(output / "sheets", name, event.step, sheet), step=event.step)
    curves.write(output)
    if event.best:
        save_result(output / BEST, start, settings.storage)
        yield Saved(path=output / BEST, step=event.step)


def _summary(start: Start, trained: set[str], device: torch.device, precision: Precision, ranks: int) -> str:
    modules = [start.model, *([start.towers] if start.towers is not None else [])]
    sizes = {name: p.numel() for module in modules for name, p in module.named_parameters()}
    parts = sorted({part_of(name) for name in trained})
    count = sum(sizes[name] for name in trained)
    number = {"no": "fp32"}.get(precision, precision)
    where = f"{device}" if ranks == 1 else f"{ranks} x {device.type}"
    return f"trains {count:,} of {sum(sizes.values()):,} parameters on {where} in {number}: {', '.join(parts)}"
