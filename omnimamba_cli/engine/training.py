"""Training commands, callable from Python: stage 1 and 2 of the language model. Yields events, prints nothing.

A run's directory is a model directory (the result) with train.json (its settings), metrics.jsonl and snapshots/.
"""

import dataclasses
import json
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch

from omnimamba_cli.engine import card, checkpoint
from omnimamba_cli.engine.checkpoint import ModelFiles
from omnimamba_cli.engine.opening import open_data
from omnimamba_cli.engine.runtime import pick_device
from omnimamba_cli.engine.starting import StageSettings, Start, own_memory, start_of
from omnimamba_cli.errors import InputError
from omnimamba_cli.train import snapshots
from omnimamba_cli.train.events import Event, Finished, Note, Progress, Saved, Sheet, Skipped
from omnimamba_cli.train.language import LanguageJob, Objective
from omnimamba_cli.train.loop import Loop, LoopConfig, Precision, accelerator
from omnimamba_cli.train.stages import freeze, part_of, trained_parts

__all__ = ["Event", "Finished", "LoopConfig", "Note", "Progress", "Saved", "Sheet", "Skipped", "StageSettings", "train"]

SETTINGS = "train.json"
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


def check_output(output: Path, *, resume: bool, force: bool, marker: str = checkpoint.CONFIG) -> None:
    """Raise InputError for a directory that holds a run or a model already; writes nothing."""
    holds = _has_snapshot(output) or (output / marker).exists()
    if holds and not (resume or force):
        raise InputError(f"{output} holds a run or a model", hint="--resume continues, --force starts anew")


def prepare_output(output: Path, *, resume: bool) -> list[Event]:
    """Make the run's directory ready, without old snapshots unless it resumes. Raises InputError where it cannot."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        if not resume:
            shutil.rmtree(output / "snapshots", ignore_errors=True)
    except OSError as error:
        raise InputError(f"{output} cannot be written: {error.strerror or error}") from None
    if resume and not _has_snapshot(output):
        return [Note(text=f"{output} holds no snapshot yet: starting at step 0")]
    return []


def _has_snapshot(output: Path) -> bool:
    return next(snapshots.newest_first(output / "snapshots"), None) is not None


def train(settings: StageSettings) -> Iterator[Event]:
    """Run a stage to its end, or until time is up; the output is a model directory either way.

    Started as one of several processes (torchrun, accelerate launch), all train and the first one tells and writes.

    Raises UsageError, CheckpointError, DataError or InputError before the first step where something does not fit.
    """
    device, _ = pick_device(settings.device)
    check_output(settings.output, resume=settings.resume, force=settings.force)
    trained_parts(settings.stage, settings.task, settings.unfreeze)
    start = start_of(settings)
    data = open_data(settings, start)
    accelerate = accelerator(device, settings.loop.precision)
    yield from data.said
    if accelerate.is_main_process:
        yield from prepare_output(settings.output, resume=settings.resume)
    accelerate.wait_for_everyone()
    device = accelerate.device
    own_memory(start, device)
    trained = freeze(start.model, start.towers, settings.stage, settings.task, settings.unfreeze)
    objective = Objective(start.model, start.towers, {"mmu": settings.weight_mmu, "t2i": settings.weight_t2i})
    job = LanguageJob(
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
    with stop_signals() as should_stop:
        loop = Loop(job, settings.loop, accelerate, settings.output, should_stop=should_stop)
        if settings.resume and _has_snapshot(settings.output):
            yield from loop.resume()
        yield Note(text=_summary(start, trained, device, settings.loop.precision, accelerate.num_processes))
        if accelerate.is_main_process:
            write_settings(settings.output, settings, start.config)
        for event in loop.run():
            if isinstance(event, Finished):
                loop.close()
                loop.average.swap()
                if accelerate.is_main_process:
                    save_result(settings, start)
                accelerate.wait_for_everyone()
                yield Saved(path=settings.output, step=event.step)
                event = dataclasses.replace(event, path=settings.output)
            yield event


def _summary(start: Start, trained: set[str], device: torch.device, precision: Precision, ranks: int) -> str:
    modules = [start.model, *([start.towers] if start.towers is not None else [])]
    sizes = {name: p.numel() for module in modules for name, p in module.named_parameters()}
    parts = sorted({part_of(name) for name in trained})
    count = sum(sizes[name] for name in trained)
    number = {"no": "fp32"}.get(precision, precision)
    where = f"{device}" if ranks == 1 else f"{ranks} x {device.type}"
    return f"trains {count:,} of {sum(sizes.values()):,} parameters on {where} in {number}: {', '.join(parts)}"


def _plain(value: Any) -> Any:  # Any: dataclass fields of every kind
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def write_settings(output: Path, settings: Any, config: Any = None) -> None:  # Any: dataclasses
    """train.json: the settings a run really had."""
    data = {"settings": _plain(dataclasses.asdict(settings))}
    if config is not None:
        data["model"] = config.to_dict()
    (output / SETTINGS).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def save_result(settings: StageSettings, start: Start) -> None:
    """The model directory: each file whole before it takes its name, config.json last."""
    temporary = settings.output / ".result.partial"
    shutil.rmtree(temporary, ignore_errors=True)
    opened = start.towers is not None and any(p.requires_grad for p in start.towers.parameters())
    files = ModelFiles(start.config, start.model, start.towers if opened else None, None, start.tokenizer)
    checkpoint.save_directory(temporary, files, storage=settings.storage)
    for name, source in start.copies.items():
        target = temporary / name
        if not target.exists():
            checkpoint.link_or_copy(source, target)
    text = card.render(start.config, checkpoint.part_sizes(temporary))
    (temporary / checkpoint.CARD).write_text(text, encoding="utf-8")
    try:
        for path in sorted(temporary.iterdir(), key=lambda p: p.name == checkpoint.CONFIG):
            path.replace(settings.output / path.name)
        # renaming a file onto another link to itself leaves both names
        shutil.rmtree(temporary)
    except OSError as error:
        raise InputError(f"{settings.output} cannot be written: {error.strerror or error}") from None
