"""Tokenizers: training them, and turning pictures into codes. Callable from Python; yields events."""

import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from omnimamba_cli.config import VQConfig
from omnimamba_cli.data.datasets import Bad, Pictures
from omnimamba_cli.data.mixing import PictureBatch, collate_pictures
from omnimamba_cli.data.records import BAD_SHARE, Record, Rejects, captions_of, read_records, turns_of
from omnimamba_cli.data.sequences import TRAINING_PROMPT
from omnimamba_cli.data.tokenizer import train_bpe
from omnimamba_cli.engine import checkpoint
from omnimamba_cli.engine.runtime import pick_device
from omnimamba_cli.engine.safetensors_io import partial
from omnimamba_cli.engine.starting import fill, part_file, vq_config
from omnimamba_cli.errors import CheckpointError, DataError, InputError
from omnimamba_cli.model.vq import VQModel
from omnimamba_cli.presets import preset
from omnimamba_cli.train.events import Event, Note, Progress, Saved
from omnimamba_cli.train.loop_config import fixed_shapes
from omnimamba_cli.train.pictures import scaled

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
