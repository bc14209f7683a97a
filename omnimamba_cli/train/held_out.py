"""Loss on data that nothing trains on: the same samples, in the same order, at every evaluation."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from omnimamba_cli.config import Task
from omnimamba_cli.data.batches import Collate, DrawBatch, TalkBatch
from omnimamba_cli.data.codes import DrawnCodes
from omnimamba_cli.data.files import DataFile
from omnimamba_cli.data.mixing import Order, Split
from omnimamba_cli.data.talks import Conversations
from omnimamba_cli.train.language import TaskBatches

ORDER_SEED = 0  # the same for every run, so that all runs are evaluated on the same samples


class HeldOutLanguage:
    """Held-out samples of one or both tasks, at most `samples` of each, read in batches of `rows`."""

    def __init__(
        self,
        talks: Conversations | None,
        drawings: DrawnCodes | None,
        *,
        weights: Mapping[Task, float],
        rows: Mapping[Task, int],
        samples: int,
    ) -> None:
        self.talks, self.drawings, self.weights, self.rows, self.samples = talks, drawings, weights, rows, samples

    @property
    def files(self) -> list[DataFile]:
        """The data files, those of mmu first."""
        return [file for samples in (self.talks, self.drawings) if samples is not None for file in samples.files]

    def chosen(self, task: Task) -> np.ndarray:
        """Indices (n) of the samples that are read, int64; the first of them are also shown on the sheets."""
        data = self.talks if task == "mmu" else self.drawings
        assert data is not None
        return Order(len(data), ORDER_SEED).indices(np.arange(min(len(data), self.samples)))

    def losses(self, module: nn.Module, accelerate: Accelerator) -> dict[str, float]:
        """Each task's mean cross-entropy per target, and their weighted sum "eval_loss"; the same in every process."""
        tasks: list[Task] = [task for task, data in (("mmu", self.talks), ("t2i", self.drawings)) if data is not None]
        one = torch.ones((), device=accelerate.device)
        sums = torch.zeros(2 * len(tasks), dtype=torch.float64)
        for place, task in enumerate(tasks):
            for batch in self._batches(task, accelerate.num_processes, accelerate.process_index):
                # an empty share of a batch still runs: a wrapped module may wait for every process
                values = module(TaskBatches({task: batch.to(accelerate.device)}), {task: one})
                sums[2 * place] += float(values[f"loss_{task}"])
                sums[2 * place + 1] += batch.count
        if accelerate.num_processes > 1:
            # Apple's GPU has no float64, but it is never one of several
            sums = accelerate.reduce(sums.to(accelerate.device), "sum").cpu()
        means = {task: float(sums[2 * i] / sums[2 * i + 1].clamp(min=1)) for i, task in enumerate(tasks)}
        total = sum(self.weights[task] * mean for task, mean in means.items())
        return {"eval_loss": total, **{f"eval_loss_{task}": mean for task, mean in means.items()}}

    def _batches(self, task: Task, ranks: int, rank: int) -> Iterator[TalkBatch | DrawBatch]:
        """This process's share of every batch."""
        chosen = self.chosen(task)
        for start in range(0, len(chosen), self.rows[task]):
            rows = min(self.rows[task], len(chosen) - start)
            positions = start + Split(rows, 1, ranks, rank).positions(0, 0)
            if task == "t2i":
                assert self.drawings is not None
                yield DrawBatch(*self.drawings.rows(positions, chosen[positions]))
            else:
                assert self.talks is not None
                keys = zip(positions.tolist(), chosen[positions].tolist(), strict=True)
                yield Collate(self.talks.maker.config)([self.talks[key] for key in keys])
