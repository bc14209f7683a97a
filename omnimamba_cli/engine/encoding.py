"""Pictures with captions to codes with captions, by any number of processes; what was interrupted continues.

Process i of n encodes the i-th of n equal runs of samples into OUT.i-of-n.partial. OUT.i-of-n.partial.json says of
which data they are, which samples were skipped, and at last that it is done; who finds all n done joins them.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from omnimamba_cli.config import BAD_SHARE
from omnimamba_cli.data.batches import CaptionedBatch, collate_captioned
from omnimamba_cli.data.mixing import loader
from omnimamba_cli.data.pictures import CaptionedMaker
from omnimamba_cli.data.rejects import Bad
from omnimamba_cli.data.shards import is_shards
from omnimamba_cli.engine.alone import alone
from omnimamba_cli.engine.opening import holds_codes, open_samples, pixel_encoder
from omnimamba_cli.engine.runtime import pick_device
from omnimamba_cli.engine.safetensors_io import partial
from omnimamba_cli.engine.starting import part_file
from omnimamba_cli.engine.tokenizing import VQ_FILE, load_vq
from omnimamba_cli.errors import DataError, InputError, UsageError, file_reason
from omnimamba_cli.presets import preset
from omnimamba_cli.train.events import Event, Note, Progress, Saved, Skipped
from omnimamba_cli.train.loop_config import fixed_shapes
from omnimamba_cli.train.skipping import Skipping


@dataclass(frozen=True, kw_only=True)
class TokenizeSettings:
    """Turning pictures with captions into codes with captions."""

    data: tuple[Path, ...]  # files, folders or shards
    vq: Path
    output: Path
    image_root: Path | None = None
    preset: str | None = None  # for a vq.safetensors without a config.json
    batch: int = 64
    workers: int = 0
    shard: tuple[int, int] = (1, 1)  # this process, from 1; of so many
    max_bad_share: float = BAD_SHARE
    device: str = "auto"
    force: bool = False

    def __post_init__(self) -> None:
        number, count = self.shard
        if not 1 <= number <= count:
            raise UsageError(f"shard {number}/{count} is none of 1/{count} to {count}/{count}", hint="--shard 1/4")


class Tokenizing:
    """One process's work. Raises InputError, DataError or CheckpointError at once where it cannot begin."""

    def __init__(self, settings: TokenizeSettings) -> None:
        self.settings = settings
        if settings.output.exists() and not settings.force:
            raise InputError(f"{settings.output} exists", hint="--force replaces it")
        for path in settings.data:
            if not is_shards(path) and holds_codes(path):
                raise DataError(f"{path} holds codes already", hint="train on it as it is")
        self.device, _ = pick_device(settings.device)
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        self.model = load_vq(settings.vq, preset(settings.preset).vq if settings.preset else None)
        size = self.model.config.image_size
        self.samples = open_samples(
            settings.data, settings.image_root, CaptionedMaker(size), limit=settings.max_bad_share, tries=1
        )
        number, count = settings.shard
        self.start, self.end = (len(self.samples) * i // count for i in (number - 1, number))

    @property
    def total(self) -> int:
        """Samples of this process."""
        return self.end - self.start

    def run(self) -> Iterator[Event]:
        """Write {"tokens", "captions"} JSON lines. Raises InputError where another process does the same part."""
        lines = _lines(self.settings, self.settings.shard[0])
        with alone(lines.with_name(lines.name + ".lock"), lines):
            yield from self._run()

    def _run(self) -> Iterator[Event]:
        settings = self.settings
        for name, reason in self.samples.rejects.reasons.items():
            yield Skipped(name=name, reason=reason)
        part = _Part(settings, self.start)
        done = part.resume()
        if done:
            yield Note(text=f"continuing after {done:,} of {self.total:,} samples")
        encode = pixel_encoder(self.model, self.device)
        skipping = Skipping(settings.max_bad_share, self.total)
        for batch in self._batches(self.start + done):
            with fixed_shapes(self.device):
                codes = iter(encode(batch.pixels.to(self.device)).tolist())
            part.write([None if isinstance(sample, Bad) else (next(codes), sample) for sample in batch.samples])
            skipping.count(len(batch.samples), batch.bad)
            yield from skipping.said()
            done += len(batch.samples)
            yield Progress(step=done, steps=self.total, values={}, seconds=0.0)
        skipping.rejects.check(max(self.total, 1))
        part.finish()
        if join(settings):
            yield Saved(path=settings.output, step=done)
        else:
            yield Note(text=f"part {settings.shard[0]} of {settings.shard[1]} is done; the last one joins them")
            yield Saved(path=part.lines, step=done)

    def _batches(self, start: int) -> Iterator[CaptionedBatch]:
        keys = self.samples.in_order(start, self.end)
        chunks = iter(lambda: list(islice(keys, self.settings.batch)), [])
        return iter(loader(self.samples, chunks, collate=collate_captioned, workers=self.settings.workers))


class _Part:
    """A process's lines, and beside them what tells how far it came.

    Skipped samples are recorded before the lines of their batch, so a count of whole lines tells the rest.
    """

    def __init__(self, settings: TokenizeSettings, start: int) -> None:
        self.lines = _lines(settings, settings.shard[0])
        self.log = _log(self.lines)
        self.start = start
        stats = [_stat(path) for path in (*settings.data, part_file(settings.vq, VQ_FILE))]
        self.key = hashlib.sha256(repr((stats, str(settings.image_root), settings.shard)).encode()).hexdigest()
        self.skipped: set[int] = set()  # counted from the start of this part
        self.at = 0

    def resume(self) -> int:
        """How many samples are done; a cut-off last line is removed."""
        state = _state(self.log)
        try:
            if state.get("key") != self.key or not self.lines.is_file():
                self.log.unlink(missing_ok=True)
                self.lines.write_bytes(b"")
                self._save(done=False)
                return 0
            self.skipped = set(state["skipped"])
            whole = size = 0
            with self.lines.open("rb") as file:
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    whole, size = whole + 1, size + len(line)
            os.truncate(self.lines, size)
        except OSError as error:
            raise _unwritable(self.lines, error) from error
        while whole or self.at in self.skipped:
            whole -= self.at not in self.skipped
            self.at += 1
        return self.at

    def write(self, rows: Sequence[tuple[list[int], list[str]] | None]) -> None:
        """One batch, appended; None for a skipped sample. Raises InputError when the disk does not take it."""
        bad = {self.at + i for i, row in enumerate(rows) if row is None}
        if bad:
            self.skipped |= bad
            self._save(done=False)
        lines = [
            json.dumps({"tokens": row[0], "captions": row[1]}, ensure_ascii=False, separators=(",", ":")) + "\n"
            for row in rows
            if row is not None
        ]
        try:
            with self.lines.open("a", encoding="utf-8", errors="replace") as file:
                file.writelines(lines)
        except OSError as error:
            raise _unwritable(self.lines, error) from error
        self.at += len(rows)

    def finish(self) -> None:
        """All lines are on disk, and it says so."""
        with self.lines.open("rb") as file:
            os.fsync(file.fileno())
        self._save(done=True)

    def _save(self, *, done: bool) -> None:
        state = {"key": self.key, "skipped": sorted(self.skipped), "done": done}
        with partial(self.log) as temporary:
            temporary.write_text(json.dumps(state), encoding="utf-8")


def join(settings: TokenizeSettings) -> bool:
    """Make the output of all parts if they are done, and remove them. Returns whether the output is there."""
    parts = [_lines(settings, number) for number in range(1, settings.shard[1] + 1)]
    if not all(_state(_log(part)).get("done") for part in parts):
        # our own part was done: where it is gone, another process has joined them
        return not _log(parts[settings.shard[0] - 1]).exists()
    try:
        if len(parts) == 1:
            os.replace(parts[0], settings.output)
        else:
            with partial(settings.output) as temporary, temporary.open("wb") as whole:
                for part in parts:
                    with part.open("rb") as file:
                        shutil.copyfileobj(file, whole, 1 << 20)
    except OSError as error:
        raise _unwritable(settings.output, error) from error
    except InputError:
        # another process joined them, and took them away, at the same time
        if settings.output.exists() and not all(part.exists() for part in parts):
            return True
        raise
    for part in parts:
        part.unlink(missing_ok=True)
        _log(part).unlink(missing_ok=True)
    return True


def _lines(settings: TokenizeSettings, number: int) -> Path:
    count = settings.shard[1]
    middle = "" if count == 1 else f".{number}-of-{count}"
    return settings.output.with_name(f"{settings.output.name}{middle}.partial")


def _log(lines: Path) -> Path:
    return lines.with_name(lines.name + ".json")


def _state(log: Path) -> dict[str, Any]:  # Any: JSON
    try:
        data = json.loads(log.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _stat(path: Path) -> tuple[str, int, int]:
    """What tells whether a file is still the same; of shards behind braces the name alone."""
    if not path.exists():
        return (str(path), 0, 0)
    return (str(path), path.stat().st_size, path.stat().st_mtime_ns)


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{path} cannot be written: {file_reason(error)}",
        hint="free some space or choose another --output; the same command continues",
    )
