"""Micro-batches as tensors, and collating items into them: conversations, drawings as codes or pictures, pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from omnimamba_cli.config import ModelConfig
from omnimamba_cli.data.pictures import Captioned, Sketch
from omnimamba_cli.data.rejects import Bad
from omnimamba_cli.data.sequences import mmu_length, plain_lead, t2i_prefix
from omnimamba_cli.data.talks import Talk

IGNORE = -100  # target of a position that is not learned
TEXT_MULTIPLE = 8  # rows are padded to a multiple of this, so that few different lengths occur


@dataclass
class TalkBatch:
    """Rows of the mmu task: i with a picture, then p without one, all l tokens long.

    pixels (i 3 s s) uint8; ids (i t), the text after the pictures, padded on the right; plain (p l), the rows without a
    picture; places (m), where in the flattened (i + p, l) hidden states a target is predicted; targets (m).
    """

    pixels: Tensor
    ids: Tensor
    plain: Tensor
    places: Tensor
    targets: Tensor
    bad: list[Bad] = field(default_factory=list)
    tokens: int = 0  # without padding
    length: int = 0  # l, of every row

    @property
    def count(self) -> int:
        """Number of targets."""
        return len(self.targets)

    @property
    def samples(self) -> int:
        """Samples that were looked at for it, bad ones included."""
        return len(self.pixels) + len(self.plain) + len(self.bad)

    def pin_memory(self) -> "TalkBatch":
        """Called by the DataLoader: from pinned memory the copy to the device does not wait."""
        return self._map(lambda t: t.pin_memory())

    def to(self, device: torch.device) -> "TalkBatch":
        """On the device, without waiting."""
        return self._map(lambda t: t.to(device, non_blocking=True))

    def _map(self, move: Any) -> "TalkBatch":  # Any: Tensor -> Tensor
        tensors = [move(t) for t in (self.pixels, self.ids, self.plain, self.places, self.targets)]
        return TalkBatch(*tensors, bad=self.bad, tokens=self.tokens, length=self.length)


@dataclass
class DrawBatch:
    """Rows of the t2i task: prefix ids (b prefix) and codes (b codes), int32."""

    prefix: Tensor
    codes: Tensor
    bad: list[Bad] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Number of targets."""
        return self.codes.numel()

    @property
    def tokens(self) -> int:
        """Tokens that run through the model."""
        return self.prefix.numel() + self.codes.numel()

    @property
    def samples(self) -> int:
        """Samples that were looked at for it, bad ones included."""
        return len(self.codes) + len(self.bad)

    def to(self, device: torch.device) -> "DrawBatch":
        """On the device, without waiting."""
        tensors = [self.prefix, self.codes]
        if device.type == "cuda":
            tensors = [t.pin_memory() for t in tensors]
        return DrawBatch(*(t.to(device, non_blocking=True) for t in tensors), bad=self.bad)


@dataclass
class SketchBatch:
    """Rows of the t2i task before their codes are known: prefix (b prefix) int32, pixels (b 3 s s) uint8."""

    prefix: Tensor
    pixels: Tensor
    bad: list[Bad] = field(default_factory=list)

    def pin_memory(self) -> "SketchBatch":
        """Called by the DataLoader, see TalkBatch."""
        return SketchBatch(self.prefix.pin_memory(), self.pixels.pin_memory(), self.bad)

    def drawn(self, encode: Callable[[Tensor], Tensor], device: torch.device) -> DrawBatch:
        """The batch on the device, its pixels turned into codes; `encode` takes uint8 (b 3 s s) and gives (b codes)."""
        prefix, pixels = (t.to(device, non_blocking=True) for t in (self.prefix, self.pixels))
        return DrawBatch(prefix, encode(pixels).int(), bad=self.bad)


def collate_sketches(config: ModelConfig, items: Sequence[Sketch | Bad]) -> SketchBatch:
    """Collate items of the t2i task."""
    sketches = [i for i in items if isinstance(i, Sketch)]
    length, side = len(t2i_prefix(config, [])), config.vq.image_size
    pixels = [s.pixels for s in sketches]
    return SketchBatch(
        torch.tensor([s.prefix for s in sketches], dtype=torch.int32).reshape(-1, length),
        torch.stack(pixels) if pixels else torch.zeros(0, 3, side, side, dtype=torch.uint8),
        all_bad(items),
    )


@dataclass
class CaptionedBatch:
    """Each sample's captions, or what was wrong with it, in order; and the pixels (b 3 s s) uint8 of the good ones."""

    samples: list[list[str] | Bad]
    pixels: Tensor

    @property
    def bad(self) -> list[Bad]:
        """The samples without pixels."""
        return [sample for sample in self.samples if isinstance(sample, Bad)]


def collate_captioned(items: Sequence[Captioned | Bad]) -> CaptionedBatch:
    """Collate into one tensor: a worker process passes each tensor on in a file of its own, half a millisecond each."""
    pixels = [item.pixels for item in items if isinstance(item, Captioned)]
    return CaptionedBatch(
        [item.captions if isinstance(item, Captioned) else item for item in items],
        torch.stack(pixels) if pixels else torch.zeros(0, 3, 1, 1, dtype=torch.uint8),
    )


def all_bad(items: Sequence[Any]) -> list[Bad]:  # Any: items of every maker, or Bad
    """Every bad sample that was met for a batch: those replaced by another, and those no replacement was found for."""
    found: list[Bad] = []
    for item in items:
        found += (item, *item.also) if isinstance(item, Bad) else item.instead_of
    return found


class Collate:
    """Collates items of the mmu task into a TalkBatch."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.before = mmu_length(config, 0)  # tokens before the text of a row with a picture
        self.plain_lead = plain_lead(config)

    def __call__(self, items: Sequence[Talk | Bad]) -> TalkBatch:
        talks = [i for i in items if isinstance(i, Talk)]
        shown = [t for t in talks if t.pixels is not None]
        plain = [t for t in talks if t.pixels is None]
        lengths = [self.before + len(t.ids) for t in shown] + [len(self.plain_lead) + len(t.ids) for t in plain]
        length = max(lengths, default=0)
        room = self.config.mmu_positions - length
        length += min(-length % TEXT_MULTIPLE, max(room, 0))
        text = length - self.before if shown else 0
        pad = self.config.text.special("[PAD]")
        side = self.config.vision_image_size
        pixels = [t.pixels for t in shown if t.pixels is not None]
        places, targets = self._targets(shown, plain, length)
        return TalkBatch(
            torch.stack(pixels) if pixels else torch.zeros(0, 3, side, side, dtype=torch.uint8),
            _padded([t.ids for t in shown], text, pad),
            _padded([self.plain_lead + t.ids for t in plain], length, pad),
            torch.tensor(places, dtype=torch.int64),
            torch.tensor(targets, dtype=torch.int64),
            bad=all_bad(items),
            tokens=sum(lengths),
            length=length,
        )

    def _targets(self, shown: list[Talk], plain: list[Talk], length: int) -> tuple[list[int], list[int]]:
        """places and targets of a TalkBatch."""
        places: list[int] = []
        targets: list[int] = []
        for row, talk in enumerate([*shown, *plain]):
            start = self.before if talk.pixels is not None else len(self.plain_lead)
            for i, (token, wanted) in enumerate(zip(talk.ids, talk.targets, strict=True)):
                if wanted:  # the hidden state of the token before predicts it
                    places.append(row * length + start + i - 1)
                    targets.append(token)
        return places, targets


def _padded(rows: Sequence[Sequence[int]], length: int, pad: int) -> Tensor:
    result = torch.full((len(rows), length), pad, dtype=torch.int64)
    for i, row in enumerate(rows):
        result[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return result


@dataclass
class PictureBatch:
    """Pictures (b 3 s s) uint8."""

    pixels: Tensor
    bad: list[Bad] = field(default_factory=list)

    @property
    def samples(self) -> int:
        """Samples that were looked at for it, bad ones included."""
        return len(self.pixels) + len(self.bad)

    def pin_memory(self) -> "PictureBatch":
        """Called by the DataLoader, see TalkBatch."""
        return PictureBatch(self.pixels.pin_memory(), self.bad)


def collate_pictures(items: Sequence[Tensor | Bad]) -> PictureBatch:
    """Collate items of Pictures."""
    good = [i for i in items if isinstance(i, Tensor)]
    size = good[0].shape if good else (3, 0, 0)
    pixels = torch.stack(good) if good else torch.zeros(0, *size, dtype=torch.uint8)
    return PictureBatch(pixels, [i for i in items if isinstance(i, Bad)])
