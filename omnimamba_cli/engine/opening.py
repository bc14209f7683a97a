"""Opens the data of a training run, and checks some samples before the first step, so that errors show at once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from omnimamba_cli.config import BAD_SHARE
from omnimamba_cli.data.codes import DrawnCodes
from omnimamba_cli.data.files import DataFile
from omnimamba_cli.data.pictures import SketchMaker
from omnimamba_cli.data.records import read_records
from omnimamba_cli.data.rejects import REMEDY, Bad, Rejects, allowed
from omnimamba_cli.data.samples import TRIES, Maker, Raw, Samples, problem
from omnimamba_cli.data.shards import ShardSamples, is_shards, samples_of
from omnimamba_cli.data.talks import TalkMaker
from omnimamba_cli.engine.starting import StageSettings, Start, fill
from omnimamba_cli.errors import CheckpointError, DataError, UsageError
from omnimamba_cli.model.vq import VQModel
from omnimamba_cli.train.events import Event, Note, Skipped
from omnimamba_cli.train.pictures import scaled

LOOK = 200  # samples that are checked before the first step: drawn by the seed, or a shard's first ones
NAMED = 10  # rejected samples that are reported by name
ENCODED_PX = 16 * 256 * 256  # pixels encoded at once: the encoder's first maps are large


@dataclass
class OpenData:
    """What a run trains on, and the remarks about it."""

    talks: Samples | ShardSamples | None = None
    drawings: DrawnCodes | Samples | ShardSamples | None = None
    vq: VQModel | None = None  # where drawings are pictures
    said: list[Event] = field(default_factory=list)

    @property
    def files(self) -> list[DataFile]:
        """The data files, those of mmu first."""
        return [file for samples in (self.talks, self.drawings) if samples is not None for file in samples.files]

    def encoder(self, device: torch.device) -> Callable[[Tensor], Tensor] | None:
        """The function that turns pixels into codes; None where drawings are codes already."""
        return None if self.vq is None else pixel_encoder(self.vq, device)


def pixel_encoder(model: VQModel, device: torch.device) -> Callable[[Tensor], Tensor]:
    """A function of uint8 pixels (b 3 s s) on the device that returns their codes (b codes) int64.

    It computes in float32: with half precision, features that lie between two codes get another one.
    """
    model = model.to(device).eval().requires_grad_(False).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def encode(pixels: Tensor) -> Tensor:
        if not len(pixels):
            return torch.zeros(0, model.config.codes, dtype=torch.int64, device=device)
        rows = max(1, ENCODED_PX // model.config.image_size**2)
        return torch.cat([model.encode(scaled(part)) for part in torch.split(pixels, rows)])

    return encode


def open_data(settings: StageSettings, start: Start) -> OpenData:
    """The run's data sets, checked. Raises UsageError, InputError or DataError where they cannot be trained on."""
    for task, paths in (("mmu", settings.data_mmu), ("t2i", settings.data_t2i)):
        if task in settings.tasks and not paths:
            option = "--data" if settings.task else f"--data-{task}"
            raise UsageError(f"there are no {task} data", hint=f"{option} FILE")
    data = OpenData()
    seed, limit = settings.loop.seed, settings.max_bad_share
    if "t2i" in settings.tasks:
        if _all_codes(settings.data_t2i):
            data.drawings = DrawnCodes(settings.data_t2i, start.config, start.tokenizer, seed=seed, limit=limit)
        else:
            sketches = SketchMaker(start.config, start.tokenizer, seed=seed)
            data.drawings = open_samples(settings.data_t2i, settings.image_root, sketches, seed=seed, limit=limit)
            data.vq = _vq(start)
        data.said += said(data.drawings, "t2i", seed)
    if "mmu" in settings.tasks:
        talks = TalkMaker(start.config, start.tokenizer, questions=settings.questions, seed=seed)
        data.talks = open_samples(settings.data_mmu, settings.image_root, talks, seed=seed, limit=limit)
        data.said += said(data.talks, "mmu", seed)
    return data


def open_samples(
    paths: Sequence[Path],
    image_root: Path | None,
    maker: Maker,
    *,
    seed: int = 0,
    limit: float = BAD_SHARE,
    tries: int = TRIES,
) -> Samples | ShardSamples:
    """The data set of files and folders, or of shards. Raises UsageError for both at once."""
    if not any(map(is_shards, paths)):
        return Samples(paths, image_root, maker, seed=seed, limit=limit, tries=tries)
    if not all(map(is_shards, paths)):
        raise UsageError(
            "tar shards and other files cannot be mixed in one run", hint="give one kind, or put the files into shards"
        )
    return ShardSamples(paths, maker, limit=limit)


def _all_codes(paths: Sequence[Path]) -> bool:
    """Whether t2i data are codes, not pictures. Raises UsageError for some of each."""
    kinds = {path: not is_shards(path) and holds_codes(path) for path in paths}
    if len(set(kinds.values())) > 1:
        pictures = next(path for path, codes in kinds.items() if not codes)
        raise UsageError(
            f"{pictures} holds pictures, other files of the same task hold codes",
            hint=f"omnimamba tokenize --data {pictures} -o codes.jsonl",
        )
    return all(kinds.values())


def holds_codes(path: Path) -> bool:
    """Whether a file's first sample has codes."""
    return any("tokens" in record for _, record in islice(read_records(path, Rejects()), 1))


def check_held_codes(paths: Sequence[Path]) -> None:
    """Raises UsageError for held-out drawings that are pictures: they are compared with codes."""
    if not _all_codes(paths):
        raise UsageError(
            f"{paths[0]} holds pictures, held-out drawings are read as codes",
            hint=f"omnimamba tokenize --data {paths[0]} --vq MODEL -o held.jsonl",
        )


def _vq(start: Start) -> VQModel:
    path = start.copies.get("vq.safetensors")
    if path is None:
        raise CheckpointError(
            "the model has no vq.safetensors: it cannot turn pictures into codes", hint="--vq FILE, or codes as data"
        )
    model = VQModel(start.config.vq)
    fill(model, path)
    return model


def said(samples: DrawnCodes | Samples | ShardSamples, what: str, seed: int) -> Iterator[Event]:
    """Remarks on a data set. Raises DataError where too many of the samples that are checked first are bad."""
    bad = samples.rejects.reasons
    yield Note(text=f"{what}: {len(samples):,} samples" + (f", {len(bad):,} bad ones left out" if bad else ""))
    for name, reason in list(bad.items())[:NAMED]:
        yield Skipped(name=name, reason=reason)
    if isinstance(samples, DrawnCodes):  # read whole, and checked with that
        return
    looked_at, found = first_look(samples, seed)
    if not found:
        return
    first = f"{found[0].name}: {found[0].reason}"
    if len(found) > allowed(samples.rejects.limit, looked_at, len(samples)):
        raise DataError(
            f"{len(found):,} of {looked_at:,} {what} samples looked at cannot be used; first: {first}",
            hint=REMEDY,
        )
    yield Note(
        text=f"{what}: {len(found):,} of the {looked_at:,} samples looked at first cannot be used; first: {first}"
    )


def first_look(samples: Samples | ShardSamples, seed: int, count: int = LOOK) -> tuple[int, list[Bad]]:
    """How many samples were looked at, and what is wrong with them, without decoding pictures."""
    raws: Iterator[Raw | Bad]
    if isinstance(samples, ShardSamples):
        wanted = next(shard for shard in samples.shards if shard.samples)
        raws = islice(samples_of(wanted.url), min(count, wanted.samples))
    else:
        chosen = np.random.default_rng(seed).permutation(len(samples))[:count]
        raws = (samples.raw(int(i)) for i in chosen)
    found, number = [], 0
    for raw in raws:
        number += 1
        bad = raw if isinstance(raw, Bad) else problem(samples.maker, raw)
        if bad is not None:
            found.append(bad)
    return number, found
