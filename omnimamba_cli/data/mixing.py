"""Which samples form which batch: shuffled anew each epoch, and a function of seed and position alone.

A run's samples are one endless row of shuffled epochs; with B samples a step, step s takes positions s*B to (s+1)*B. So
the step number is the place in the data, a resumed run sees the same batches, and processes share a batch without
overlap.
"""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from omnimamba_cli.data.batches import DrawBatch
from omnimamba_cli.data.codes import DrawnCodes
from omnimamba_cli.data.samples import Samples
from omnimamba_cli.data.shards import ShardSampler, ShardSamples


class Order:
    """Which of `count` samples stands at a position of the run; each epoch is a new permutation."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._known: dict[int, np.ndarray] = {}

    def _epoch(self, epoch: int) -> np.ndarray:
        if epoch not in self._known:
            kept = {e: p for e, p in self._known.items() if e >= epoch - 1}
            self._known = {**kept, epoch: np.random.default_rng([self.seed, epoch]).permutation(self.count)}
        return self._known[epoch]

    def indices(self, positions: np.ndarray) -> np.ndarray:
        """Indices of the samples at these positions; quick where positions rise from call to call."""
        epochs, places = np.divmod(positions, self.count)
        result = np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs):
            mine = epochs == epoch
            result[mine] = self._epoch(int(epoch))[places[mine]]
        return result


@dataclass(frozen=True)
class Split:
    """How the `rows` of a step are divided: into `parts` micro-batches, each over `ranks` processes."""

    rows: int
    parts: int = 1
    ranks: int = 1
    rank: int = 0

    def positions(self, step: int, part: int) -> np.ndarray:
        """Positions of this process's rows of a micro-batch."""
        slot, slots = part * self.ranks + self.rank, self.parts * self.ranks
        start, end = self.rows * slot // slots, self.rows * (slot + 1) // slots
        return np.arange(step * self.rows + start, step * self.rows + end)

    def from_step(self, step: int) -> Iterator[np.ndarray]:
        """Positions of this process's rows in every micro-batch from a step on, without end."""
        while True:
            for part in range(self.parts):
                yield self.positions(step, part)
            step += 1


class Sampler(torch.utils.data.Sampler[list[tuple[int, int]]]):
    """Batches of (position, index) from a step on, micro-batch by micro-batch, without end."""

    def __init__(self, order: Order, split: Split, step: int) -> None:
        self.order, self.split, self.step = order, split, step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for positions in self.split.from_step(self.step):
            yield list(zip(positions.tolist(), self.order.indices(positions).tolist(), strict=True))


def sample_batches(
    samples: Samples | ShardSamples,
    seed: int,
    split: Split,
    step: int,
    *,
    collate: Any,  # Any: list of items to a batch
    workers: int,
    pin: bool,
) -> Iterator[Any]:
    """Micro-batches of samples in files or in shards, from a step on."""
    if isinstance(samples, ShardSamples):
        keys: Any = ShardSampler(samples.shards, seed, split, step)
    else:
        keys = Sampler(Order(len(samples), seed), split, step)
    return iter(loader(samples, keys, collate=collate, workers=workers, pin=pin))


def loader(
    dataset: torch.utils.data.Dataset[Any],  # Any: each dataset has its own items
    keys: Any,  # Any: batches of the dataset's keys
    *,
    collate: Any,  # Any: list of items to a batch
    workers: int,
    pin: bool = False,
) -> torch.utils.data.DataLoader[Any]:
    """A DataLoader over batches of keys. Worker processes stay for the whole run; the order does not depend on them."""
    # the tokenizers library warns at every fork once it has run in parallel
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return torch.utils.data.DataLoader(
        dataset,
        batch_sampler=keys,
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers else None,
        pin_memory=pin,
        worker_init_fn=start_worker,
    )


def start_worker(worker: int) -> None:
    """Set a worker process up: one thread, and signals are left to the main process."""
    torch.set_num_threads(1)
    # on Ctrl-C the run saves and stops; its workers end with it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def draw_batches(dataset: DrawnCodes, order: Order, split: Split, step: int) -> Iterator[DrawBatch]:
    """Micro-batches of codes from a step on. They are in memory, so no workers read them."""
    for positions in split.from_step(step):
        yield DrawBatch(*dataset.rows(positions, order.indices(positions)))
