"""Training the image tokenizer, callable from Python. Yields events."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from omnimamba_cli.config import BAD_SHARE, VQConfig
from omnimamba_cli.data.files import DataFile
from omnimamba_cli.data.pictures import Pictures
from omnimamba_cli.data.resident import ResidentPictures, fits
from omnimamba_cli.engine import checkpoint, curves
from omnimamba_cli.engine.board import Board, summary_writer
from omnimamba_cli.engine.memory import memory_explained
from omnimamba_cli.engine.rehearsal import measured, state_bytes
from omnimamba_cli.engine.run_folder import (
    changed_settings,
    check_output,
    has_snapshot,
    held,
    prepare_output,
    write_settings,
)
from omnimamba_cli.engine.runtime import pick_device
from omnimamba_cli.engine.safetensors_io import partial, write_safetensors
from omnimamba_cli.engine.samples import save_sheet
from omnimamba_cli.engine.tokenizing import VQ_FILE, load_vq
from omnimamba_cli.engine.training import stop_signals
from omnimamba_cli.errors import UsageError
from omnimamba_cli.model.vq import VQModel
from omnimamba_cli.train.events import Event, Finished, Note, Plan, Saved, Sheet
from omnimamba_cli.train.loop import Loop
from omnimamba_cli.train.loop_config import LoopConfig, accelerator, fixed_shapes
from omnimamba_cli.train.pictures import VQJob, VQLosses, VQObjective


@dataclass(frozen=True, kw_only=True)
class VQSettings:
    """A training run of the image tokenizer."""

    data: Path  # folder of pictures
    output: Path
    config: VQConfig
    loop: LoopConfig
    init: Path | None = None  # weights to start from instead of random ones
    batch: int = 64  # pictures a step
    losses: VQLosses = field(default_factory=VQLosses)
    revive_every: int = 100  # steps
    sheet_every: int = 1000
    workers: int = 0
    max_bad_share: float = BAD_SHARE
    device: str = "auto"
    compile: bool = False
    tensorboard: bool = False
    resume: bool = False
    force: bool = False
    dry_run: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)  # of the command line, for train.toml


def train_image_tokenizer(settings: VQSettings) -> Iterator[Event]:
    """Train a VQ model on a folder of pictures; the output holds vq.safetensors and config.json."""
    device, _ = pick_device(settings.device)
    if settings.tensorboard:
        summary_writer()
    if not settings.dry_run:
        check_output(settings.output, resume=settings.resume, force=settings.force, marker=VQ_FILE)
    pictures = Pictures.below(settings.data, settings.config.image_size)
    yield Note(text=f"{len(pictures):,} pictures")
    accelerate = accelerator(device, settings.loop.precision)
    if accelerate.num_processes > 1:
        raise UsageError("train-tokenizer image runs in one process", hint="start it without torchrun or accelerate")
    source: Pictures | ResidentPictures = pictures
    if settings.batch * settings.loop.steps > 2 * len(pictures) and fits(pictures, accelerate.device):
        source = ResidentPictures(pictures, accelerate.device, workers=settings.workers)
        yield Note(text=f"all pictures are kept on {accelerate.device}")
    memory = memory_explained({"--batch": settings.batch}, settings.output, accumulate=settings.loop.accumulate)
    mine = held(settings.output, not settings.dry_run)
    with mine, stop_signals() as should_stop, fixed_shapes(accelerate.device), memory:
        if not settings.dry_run:
            yield from prepare_output(settings.output, resume=settings.resume)
        job, model = _vq_job(settings, source, accelerate.device)
        files = [DataFile.opened(settings.data, len(pictures))]
        loop = Loop(job, settings.loop, accelerate, settings.output, data=files, should_stop=should_stop)
        if settings.dry_run:
            yield from _rehearse_vq(loop)
            return
        if settings.resume and has_snapshot(settings.output):
            yield from loop.resume()
            yield from changed_settings(settings.output, settings)
        write_settings(settings.output, settings)
        yield from _run_vq(loop, settings, model)


def _vq_job(settings: VQSettings, source: Pictures | ResidentPictures, device: torch.device) -> tuple[VQJob, VQModel]:
    """The job, its modules on the device, and the model that it trains."""
    torch.manual_seed(settings.loop.seed)
    model = VQModel(settings.config) if settings.init is None else load_vq(settings.init, settings.config)
    objective = VQObjective(model, settings.losses).to(device)
    objective = objective.to(memory_format=torch.channels_last)
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    job = VQJob(
        objective,
        source,
        device=device,
        seed=settings.loop.seed,
        rows=settings.batch,
        workers=settings.workers,
        accumulate=settings.loop.accumulate,
        revive_every=settings.revive_every,
        sheet_every=settings.sheet_every,
        autocast=dtypes.get(settings.loop.precision),
        max_bad_share=settings.max_bad_share,
    )
    if settings.compile:
        objective.model.encoder.compile()
        objective.model.decoder.compile()
    return job, objective.model


def _run_vq(loop: Loop, settings: VQSettings, model: VQModel) -> Iterator[Event]:
    """The loop's events; writes sheets as they occur, and the result at the end."""
    board = Board(settings.output, loop.step) if settings.tensorboard else None
    for event in loop.run():
        if board is not None:
            board.write(event)
        if isinstance(event, Sheet):
            save_sheet(settings.output / "sheets", "step", event.step, event.image)
        if isinstance(event, Finished):
            loop.close()
            _save_vq(model, settings.output)
            curves.write(settings.output)
            yield Saved(path=settings.output / VQ_FILE, step=event.step)
            event = dataclasses.replace(event, path=settings.output)
        yield event


def _rehearse_vq(loop: Loop) -> Iterator[Event]:
    """--dry-run: sizes, then two steps."""
    count = sum(p.numel() for p in loop.parameters.values())
    held = state_bytes(count, count, average=bool(loop.config.ema))
    yield Plan(parts=[("vq", count, count)], facts={"steps": loop.config.steps, "lr": loop.config.lr, **held})
    yield from measured(loop)


def _save_vq(model: VQModel, output: Path) -> None:
    tensors = {name: t.detach().contiguous() for name, t in model.state_dict().items()}
    write_safetensors(output / VQ_FILE, tensors, {"format": "omnimamba", "storage": "fp32"})
    with partial(output / checkpoint.CONFIG) as temporary:
        temporary.write_text(json.dumps(model.config.to_dict(), indent=2) + "\n", encoding="utf-8")
