"""Which samples form which batch: an order drawn anew each epoch, a function of seed and position alone.

A run's samples are one endless row of shuffled epochs; step s of batch B takes positions s*B to (s+1)*B. So the place
in the data is the step number, a resumed run sees the same batches, and processes share a batch without overlap.
"""

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omnimamba_cli.config import ModelConfig
from omnimamba_cli.data.datasets import Bad, DrawnCodes, Talk
from omnimamba_cli.data.sequences import mmu_middle, mmu_prefix

IGNORE = -100  # target of what is not learned
TEXT_MULTIPLE = 8  # batches are padded to few different lengths


class Order:
    """Samples of an endless run over `count`, each epoch a new permutation."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._known: dict[int, np.ndarray] = {}

    def _epoch(self, epoch: int) -> np.ndarray:
        if epoch not in self._known:
            kept = {e: p for e, p in self._known.items() if e >= epoch - 1}
            self._known = {**kept, epoch: np.random.default_rng([self.seed, epoch]).permutation(self.count)}
        return self._known[epoch]

    def indices(self, positions: np.ndarray) -> np.ndarray:
        """The samples at rising positions."""
        epochs, places = np.divmod(positions, self.count)
        result = np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs):
            mine = epochs == epoch
            result[mine] = self._epoch(int(epoch))[places[mine]]
        return result


@dataclass(frozen=True)
class Split:
    """How a step's rows are cut: `rows` in all, over `parts` micro-batches of `ranks` processes each."""

    rows: int
    parts: int = 1
    ranks: int = 1
    rank: int = 0

    def positions(self, step: int, part: int) -> np.ndarray:
        """Positions of this process's rows of a micro-batch."""
        slot, slots = part * self.ranks + self.rank, self.parts * self.ranks
        start, end = self.rows * slot // slots, self.rows * (slot + 1) // slots
        return np.arange(step * self.rows + start, step * self.rows + end)


class Sampler(torch.utils.data.Sampler[list[tuple[int, int]]]):
    """Batches of (position, index) from a step on, micro-batch by micro-batch, without end."""

    def __init__(self, order: Order, split: Split, step: int) -> None:
        self.order, self.split, self.step = order, split, step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step = self.step
        while True:
            for part in range(self.split.parts):
                positions = self.split.positions(step, part)
                yield list(zip(positions.tolist(), self.order.indices(positions).tolist(), strict=True))
            step += 1


@dataclass
class TalkBatch:
    """Rows of the mmu task, those with a picture first.

    pixels (i 3 s s) uint8; ids (i t), the text behind the pictures, padded on the right; plain (p l), whole rows
    without a picture; places (m), where in the flattened (i + p, l) hidden states a target is predicted; targets (m).
    """

    pixels: Tensor
    ids: Tensor
    plain: Tensor
    places: Tensor
    targets: Tensor
    bad: list[Bad] = field(default_factory=list)
    tokens: int = 0  # pads left out
    length: int = 0  # of every row

    @property
    def count(self) -> int:
        """Targets."""
        return len(self.targets)

    @property
    def samples(self) -> int:
        """Rows, bad ones included."""
        return len(self.pixels) + len(self.plain) + len(self.bad)

    def pin_memory(self) -> "TalkBatch":
        """For the loader: pinned memory copies to the device without a wait."""
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

    bad: tuple[Bad, ...] = ()

    @property
    def count(self) -> int:
        """Targets."""
        return self.codes.numel()

    @property
    def tokens(self) -> int:
        """Tokens that run through the model."""
        return self.prefix.numel() + self.codes.numel()

    @property
    def samples(self) -> int:
        """Rows."""
        return len(self.codes)

    def to(self, device: torch.device) -> "DrawBatch":
        """On the device, without waiting."""
        tensors = [self.prefix, self.codes]
        if device.type == "cuda":
            tensors = [t.pin_memory() for t in tensors]
        return DrawBatch(*(t.to(device, non_blocking=True) for t in tensors))


class Collate:
    """Samples of the mmu task to a TalkBatch."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.before = len(mmu_prefix(config)) + config.patches + len(mmu_middle(config))
        # a row without a picture: the same words around nothing
        self.plain_lead = [mmu_prefix(config)[0], mmu_middle(config)[-1]]

    def __call__(self, items: Sequence[Talk | Bad]) -> TalkBatch:
        bad = [i for i in items if isinstance(i, Bad)]
        talks = [i for i in items if isinstance(i, Talk)]
        shown = [t for t in talks if t.pixels is not None]
        plain = [t for t in talks if t.pixels is None]
        text = max([len(t.ids) for t in shown], default=0)
        lead = len(self.plain_lead)
        text = max([text, *(len(t.ids) + lead - self.before for t in plain)]) if shown else text
        length = self.before + text if shown else max([lead + len(t.ids) for t in plain], default=0)
        room = self.config.mmu_positions - length
        extra = min(-length % TEXT_MULTIPLE, max(room, 0))
        length, text = length + extra, text + extra
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
            bad=bad,
            tokens=sum(self.before + len(t.ids) for t in shown) + sum(lead + len(t.ids) for t in plain),
            length=length,
        )

    def _targets(self, shown: list[Talk], plain: list[Talk], length: int) -> tuple[list[int], list[int]]:
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


def worker_batches(
    dataset: torch.utils.data.Dataset[Any],  # Any: each dataset has its own samples
    order: Order,
    split: Split,
    step: int,
    *,
    collate: Any,  # Any: list of samples to a batch
    workers: int,
    pin: bool,
) -> Iterator[Any]:
    """Micro-batches from a step on, read by worker processes that stay for the whole run."""
    # the tokenizers library warns at every fork once it has run in parallel
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_sampler=Sampler(order, split, step),
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers else None,
        pin_memory=pin,
        worker_init_fn=start_worker,
    )
    return iter(loader)


def start_worker(worker: int) -> None:
    """One thread each; Ctrl-C is the main process's to handle."""
    torch.set_num_threads(1)
    # the run saves and stops on Ctrl-C; its workers go when it goes
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def draw_batches(dataset: DrawnCodes, order: Order, split: Split, step: int) -> Iterator[DrawBatch]:
    """Micro-batches from a step on; plain indexing, so no workers."""
    while True:
        for part in range(split.parts):
            positions = split.positions(step, part)
            yield DrawBatch(*dataset.rows(positions, order.indices(positions)))
        step += 1


@dataclass
class PictureBatch:
    """Pictures (b 3 s s) uint8."""

    pixels: Tensor
    bad: list[Bad] = field(default_factory=list)

    @property
    def samples(self) -> int:
        """Rows, bad ones included."""
        return len(self.pixels) + len(self.bad)

    def pin_memory(self) -> "PictureBatch":
        """For the loader."""
        return PictureBatch(self.pixels.pin_memory(), self.bad)


def collate_pictures(items: Sequence[Tensor | Bad]) -> PictureBatch:
    """Samples of Pictures to a batch."""
    good = [i for i in items if isinstance(i, Tensor)]
    size = good[0].shape if good else (3, 0, 0)
    pixels = torch.stack(good) if good else torch.zeros(0, *size, dtype=torch.uint8)
    return PictureBatch(pixels, [i for i in items if isinstance(i, Bad)])
