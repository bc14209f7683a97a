"""Tokenizers: training them, and turning pictures into codes. Callable from Python; yields events."""

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from omnimamba_cli.config import VQConfig
from omnimamba_cli.data.datasets import Bad, Pictures
from omnimamba_cli.data.mixing import PictureBatch, collate_pictures
from omnimamba_cli.data.records import BAD_SHARE, Record, Rejects, captions_of, read_records, turns_of
from omnimamba_cli.data.resident import ResidentPictures, fits
from omnimamba_cli.data.sequences import TRAINING_PROMPT
from omnimamba_cli.data.tokenizer import train_bpe
from omnimamba_cli.engine import checkpoint, curves
from omnimamba_cli.engine.board import Board, summary_writer
from omnimamba_cli.engine.rehearsal import measured, state_bytes
from omnimamba_cli.engine.run_folder import check_output, has_snapshot, prepare_output, write_settings
from omnimamba_cli.engine.runtime import pick_device
from omnimamba_cli.engine.safetensors_io import partial, write_safetensors
from omnimamba_cli.engine.samples import save_sheet
from omnimamba_cli.engine.starting import fill, part_file, vq_config
from omnimamba_cli.engine.training import stop_signals
from omnimamba_cli.errors import CheckpointError, DataError, InputError, UsageError
from omnimamba_cli.model.vq import VQModel
from omnimamba_cli.presets import preset
from omnimamba_cli.train.events import Event, Finished, Note, Plan, Progress, Saved, Sheet
from omnimamba_cli.train.loop import Loop
from omnimamba_cli.train.loop_config import LoopConfig, accelerator, fixed_shapes
from omnimamba_cli.train.pictures import VQJob, VQLosses, VQObjective, scaled

VQ_FILE = "vq.safetensors"


def train_text_tokenizer(
    data: Sequence[Path], vocab_size: int, output: Path, *, force: bool = False
) -> Iterator[Event]:
    """A byte-level BPE from captions, conversations, codes files or plain text."""
    if output.exists() and not force:
        raise InputError(f"{output} exists", hint="--force replaces it")
    tokenizer = train_bpe(itertools.chain.from_iterable(map(_texts, data)), vocab_size)
    with partial(output) as temporary:
        tokenizer.save(str(temporary))
    yield Note(text=f"{tokenizer.get_vocab_size():,} ids")
    yield Saved(path=output, step=0)


def _texts(path: Path) -> Iterator[str]:
    """The words of a data file, as training will spell them."""
    if path.suffix.lower() not in (".json", ".jsonl"):
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                yield from (line.rstrip("\n") for line in file)
        except OSError as error:
            raise InputError(f"{path}: {(error.strerror or str(error)).lower()}") from None
        return
    for _, record in read_records(path, Rejects()):
        with suppress(ValueError, KeyError, AttributeError):
            if "conversations" in record:
                for question, answer in turns_of(record):
                    yield TRAINING_PROMPT.replace("{question}", question) + f" {answer}"
            else:
                for caption in captions_of(record):
                    yield caption
                    yield f" {caption}"


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
    if not settings.dry_run:
        yield from prepare_output(settings.output, resume=settings.resume)
    yield Note(text=f"{len(pictures):,} pictures")
    accelerate = accelerator(device, settings.loop.precision)
    if accelerate.num_processes > 1:
        raise UsageError("train-tokenizer image runs in one process", hint="start it without torchrun or accelerate")
    source: Pictures | ResidentPictures = pictures
    if settings.batch * settings.loop.steps > 2 * len(pictures) and fits(pictures, accelerate.device):
        source = ResidentPictures(pictures, accelerate.device, workers=settings.workers)
        yield Note(text=f"all pictures are kept on {accelerate.device}")
    torch.manual_seed(settings.loop.seed)
    model = VQModel(settings.config) if settings.init is None else load_vq(settings.init, settings.config)
    objective = VQObjective(model, settings.losses).to(accelerate.device)
    objective = objective.to(memory_format=torch.channels_last)
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    job = VQJob(
        objective,
        source,
        device=accelerate.device,
        seed=settings.loop.seed,
        rows=settings.batch,
        workers=settings.workers,
        accumulate=settings.loop.accumulate,
        revive_every=settings.revive_every,
        sheet_every=settings.sheet_every,
        autocast=dtypes.get(settings.loop.precision),
    )
    if settings.compile:
        objective.model.encoder.compile()
        objective.model.decoder.compile()
    with stop_signals() as should_stop, fixed_shapes(accelerate.device):
        loop = Loop(job, settings.loop, accelerate, settings.output, should_stop=should_stop)
        if settings.dry_run:
            yield from _rehearse_vq(loop)
            return
        if settings.resume and has_snapshot(settings.output):
            yield from loop.resume()
        write_settings(settings.output, settings)
        yield from _run_vq(loop, settings, objective.model)


def _run_vq(loop: Loop, settings: VQSettings, model: VQModel) -> Iterator[Event]:
    """The loop's events, and what is written on their occasion."""
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


def load_vq(path: Path, config: VQConfig | None = None) -> VQModel:
    """A VQ model from train-tokenizer's output, a model directory, or a vq.safetensors beside its config.json."""
    file = part_file(path, VQ_FILE)
    beside = file.parent / checkpoint.CONFIG
    if config is None:
        if not beside.is_file():
            raise CheckpointError(f"{beside} is missing: the sizes of {file} are unknown", hint="--preset NAME")
        config = vq_config(file, VQConfig())
    model = VQModel(config)
    fill(model, file)
    return model.eval()


@dataclass(frozen=True, kw_only=True)
class TokenizeSettings:
    """Turning pictures with captions into codes with captions."""

    data: Path  # captions JSON lines: {"image", "captions"}
    vq: Path
    output: Path
    image_root: Path | None = None
    preset: str | None = None  # for a vq.safetensors without a config.json
    batch: int = 64
    workers: int = 0
    device: str = "auto"
    force: bool = False


def tokenize(settings: TokenizeSettings) -> Iterator[Event]:
    """Write {"tokens", "captions"} JSON lines; an interrupted run continues after its last whole line.

    Codes are computed in float32: near the border of two codes half precision picks another one.
    """
    if settings.output.exists() and not settings.force:
        raise InputError(f"{settings.output} exists", hint="--force replaces it")
    device, _ = pick_device(settings.device)
    model = load_vq(settings.vq, preset(settings.preset).vq if settings.preset else None).to(device)
    model = model.to(memory_format=torch.channels_last)
    work = _Work(settings, part_file(settings.vq, VQ_FILE))
    dataset = Pictures(work.paths, model.config.image_size)
    done = work.resume()
    if done:
        yield Note(text=f"continuing after {done:,} of {len(work.paths):,} pictures")
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_sampler=[
            [(i, i) for i in range(start, min(start + settings.batch, len(dataset)))]
            for start in range(done, len(dataset), settings.batch)
        ],
        collate_fn=_with_items,
        num_workers=settings.workers,
        pin_memory=False,
    )
    at = done
    for flags, batch in loader:
        with fixed_shapes(device):
            codes = iter(_encode(model, batch, device))
        lines = [(at + i, None if bad else next(codes), bad) for i, bad in enumerate(flags)]
        work.write(lines)
        at += len(flags)
        for _, _, bad in lines:
            if bad is not None:
                yield Note(text=f"skipped {bad.name}: {bad.reason}")
        work.rejects.check(len(dataset))
        yield Progress(step=at, steps=len(dataset), values={}, seconds=0.0)
    work.finish()
    yield Saved(path=settings.output, step=at)


def _with_items(items: Sequence[torch.Tensor | Bad]) -> tuple[list[Bad | None], PictureBatch]:
    return [i if isinstance(i, Bad) else None for i in items], collate_pictures(items)


@torch.no_grad()
def _encode(model: VQModel, batch: PictureBatch, device: torch.device) -> list[list[int]]:
    if not len(batch.pixels):
        return []
    codes: list[list[int]] = model.encode(scaled(batch.pixels.to(device))).tolist()
    return codes


class _Work:
    """The half-written output: lines in OUT.partial, skipped pictures and the run's key in OUT.partial.json.

    Skipped pictures are recorded before the lines of their batch, so a count of whole lines tells how far it came.
    """

    def __init__(self, settings: TokenizeSettings, weights: Path) -> None:
        self.output = settings.output
        self.lines = settings.output.with_name(settings.output.name + ".partial")
        self.log = settings.output.with_name(settings.output.name + ".partial.json")
        self.rejects = Rejects(limit=BAD_SHARE)
        root = settings.image_root or settings.data.parent
        self.paths: list[Path] = []
        self.captions: list[list[str]] = []
        for name, record in read_records(settings.data, self.rejects):
            try:
                self.captions.append(captions_of(record))
                self.paths.append(root / self._image(record))
            except ValueError as error:
                self.rejects.add(name, str(error))
                del self.captions[len(self.paths) :]
        if not self.paths:
            raise DataError(f"{settings.data} has no sample that can be used")
        self.skipped: set[int] = set()
        stats = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in (settings.data, weights)]
        self.key = hashlib.sha256(repr((stats, str(root))).encode()).hexdigest()

    @staticmethod
    def _image(record: Record) -> str:
        image = record.get("image")
        if not isinstance(image, str):
            raise ValueError("it names no image")
        return image

    def resume(self) -> int:
        """How many pictures are done; a cut-off last line is removed."""
        state = self._state()
        if state.get("key") != self.key or not self.lines.is_file():
            self.lines.write_bytes(b"")
            self._save_state()
            return 0
        self.skipped = set(state["skipped"])
        whole = size = 0
        with self.lines.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                whole, size = whole + 1, size + len(line)
        os.truncate(self.lines, size)
        done = 0
        while whole or done in self.skipped:
            whole -= done not in self.skipped
            done += 1
        return done

    def write(self, lines: Sequence[tuple[int, list[int] | None, Bad | None]]) -> None:
        """One batch, appended."""
        bad = [(index, problem) for index, _, problem in lines if problem is not None]
        if bad:
            self.skipped.update(index for index, _ in bad)
            for _, problem in bad:
                self.rejects.add(problem.name, problem.reason)
            self._save_state()
        with self.lines.open("a", encoding="utf-8") as file:
            for index, codes, _ in lines:
                if codes is not None:
                    record = {"tokens": codes, "captions": self.captions[index]}
                    file.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")

    def finish(self) -> None:
        """The output takes its name."""
        with self.lines.open("rb") as file:
            os.fsync(file.fileno())
        self.lines.replace(self.output)
        self.log.unlink(missing_ok=True)

    def _state(self) -> dict[str, Any]:  # Any: JSON
        try:
            data = json.loads(self.log.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return data if isinstance(data, dict) else {}

    def _save_state(self) -> None:
        with partial(self.log) as temporary:
            temporary.write_text(json.dumps({"key": self.key, "skipped": sorted(self.skipped)}), encoding="utf-8")
