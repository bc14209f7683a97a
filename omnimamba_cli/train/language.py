"""The language model's two tasks as a job for the loop: forward passes, losses, batches."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimamba_cli.config import Task
from omnimamba_cli.data.datasets import Conversations, DrawnCodes
from omnimamba_cli.data.mixing import IGNORE, Collate, DrawBatch, Order, Split, TalkBatch, draw_batches, worker_batches
from omnimamba_cli.data.records import BAD_SHARE, Rejects
from omnimamba_cli.data.sequences import mmu_middle, mmu_prefix
from omnimamba_cli.model.omnimamba import OmniMamba
from omnimamba_cli.model.vision import VisionTowers
from omnimamba_cli.train.events import Event, Note
from omnimamba_cli.train.optimiser import Average

CHECK_BAD_AFTER = 100  # samples, or one epoch if that is shorter


@dataclass
class TaskBatches:
    """One micro-batch of each task that trains."""

    by_task: dict[Task, TalkBatch | DrawBatch]

    @property
    def tokens(self) -> int:
        """Of all tasks."""
        return sum(b.tokens for b in self.by_task.values())


class Objective(nn.Module):
    """Model and towers with the training loss; the one forward that several processes would wrap."""

    def __init__(self, model: OmniMamba, towers: VisionTowers | None, weights: Mapping[Task, float]) -> None:
        super().__init__()
        self.model = model
        self.towers = towers
        self.weights = dict(weights)
        config = model.config
        self.register_buffer("lead", torch.tensor([mmu_prefix(config)]), persistent=False)
        self.register_buffer("middle", torch.tensor([mmu_middle(config)]), persistent=False)

    def train(self, mode: bool = True) -> "Objective":
        """Towers train only where they were opened."""
        super().train(mode)
        if self.towers is not None:
            self.towers.train(mode and any(p.requires_grad for p in self.towers.parameters()))
        return self

    def forward(self, micro: TaskBatches, totals: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each task's summed cross-entropy over the step's number of targets, and their weighted sum "loss"."""
        values: dict[str, Tensor] = {}
        for task, batch in micro.by_task.items():
            summed = self.talk(batch) if isinstance(batch, TalkBatch) else self.draw(batch)
            values[f"loss_{task}"] = summed / totals[task]
        loss = torch.stack([self.weights[task] * values[f"loss_{task}"] for task in micro.by_task]).sum()
        return {"loss": loss, **values}

    def draw(self, batch: DrawBatch) -> Tensor:
        """Summed cross-entropy of the codes, each predicted from the position before it."""
        codes = batch.codes.long()
        x = torch.cat([self.model.embed_caption(batch.prefix), self.model.embed_codes(codes[:, :-1])], dim=1)
        hidden = self.model(x, "t2i")[:, batch.prefix.shape[1] - 1 :]  # (b codes d)
        return self._summed(hidden.flatten(0, 1), codes.flatten(), "t2i")

    def talk(self, batch: TalkBatch) -> Tensor:
        """Summed cross-entropy of the answers; the head runs at their positions alone."""
        rows = []
        if len(batch.pixels):
            patches = self.model.embed_patches(self.look(batch.pixels))
            lead, middle = (self.model.embed_text(ids).expand(len(patches), -1, -1) for ids in (self.lead, self.middle))
            rows.append(torch.cat([lead, patches, middle, self.model.embed_text(batch.ids)], dim=1))
        if len(batch.plain):
            rows.append(self.model.embed_text(batch.plain))
        if not rows or not len(batch.targets):
            # nothing to learn, but a backward pass must find its way: 0 through every weight that trains
            return torch.stack([p.sum() * 0.0 for p in self.model.parameters() if p.requires_grad]).sum()
        hidden = self.model(torch.cat(rows), "mmu").flatten(0, 1)
        return self._summed(hidden.index_select(0, batch.places), batch.targets, "mmu")

    def look(self, pixels: Tensor) -> Tensor:
        """uint8 pixels to patches; without gradients while the towers are frozen."""
        assert self.towers is not None
        with torch.set_grad_enabled(self.towers.training):
            return self.towers(pixels.float() / 255)

    def _summed(self, hidden: Tensor, targets: Tensor, task: Task) -> Tensor:
        logits = self.model.training_logits(hidden, task)
        if first := self.model.first_row(task):
            targets = targets + first  # codes, none of which is ignored
        # float32: a sum over many small exponentials in bf16 is off by percents
        return F.cross_entropy(logits.float(), targets, reduction="sum", ignore_index=IGNORE)


class LanguageJob:
    """Trains an Objective on conversations, drawings or both."""

    def __init__(
        self,
        module: Objective,
        *,
        device: torch.device,
        seed: int,
        rows: Mapping[Task, int],
        talks: Conversations | None,
        drawings: DrawnCodes | None,
        workers: int = 0,
        accumulate: int = 1,
        ranks: int = 1,
        rank: int = 0,
    ) -> None:
        self.module, self.device, self.seed, self.workers = module, device, seed, workers
        self.talks, self.drawings = talks, drawings
        self.splits = {task: Split(n, accumulate, ranks, rank) for task, n in rows.items()}
        self.accumulate = accumulate
        self.rejects = Rejects(limit=BAD_SHARE)
        self.seen = 0
        self.notes: list[Event] = []

    def batches(self, step: int) -> Iterator[Sequence[TaskBatches]]:
        """Micro-batches of each step on the device."""
        streams: dict[Task, Iterator[TalkBatch] | Iterator[DrawBatch]] = {}
        if self.drawings is not None:
            order = Order(len(self.drawings), self.seed + 1)
            streams["t2i"] = draw_batches(self.drawings, order, self.splits["t2i"], step)
        if self.talks is not None:
            streams["mmu"] = worker_batches(
                self.talks,
                Order(len(self.talks), self.seed),
                self.splits["mmu"],
                step,
                collate=Collate(self.talks.config),
                workers=self.workers,
                pin=self.device.type == "cuda",
            )
        while True:
            yield [self._micro(streams) for _ in range(self.accumulate)]

    def _micro(self, streams: Mapping[Task, Iterator[TalkBatch] | Iterator[DrawBatch]]) -> TaskBatches:
        by_task: dict[Task, TalkBatch | DrawBatch] = {}
        for task, stream in streams.items():
            batch = next(stream)
            if isinstance(batch, TalkBatch):
                self._count(batch)
            by_task[task] = batch.to(self.device)
        return TaskBatches(by_task)

    def _count(self, batch: TalkBatch) -> None:
        """Bad samples are named once; too many of them end the run."""
        assert self.talks is not None
        self.seen += batch.samples
        for bad in batch.bad:
            if bad.name not in self.rejects.reasons:
                self.notes.append(Note(text=f"skipped {bad.name}: {bad.reason}"))
            self.rejects.add(bad.name, bad.reason)
        if self.rejects.reasons and self.seen >= min(CHECK_BAD_AFTER, len(self.talks)):
            self.rejects.check(min(self.seen, len(self.talks)))

    def totals(self, micros: Sequence[TaskBatches]) -> dict[str, int]:
        """Targets of each task."""
        tasks = micros[0].by_task
        return {task: sum(m.by_task[task].count for m in micros) for task in tasks}

    def after_step(self, step: int, progress: float, average: Average) -> list[Event]:
        """What the data had to say."""
        said, self.notes = self.notes, []
        return said

    def report(self) -> dict[str, float]:
        """Bad samples so far, where there are any."""
        return {"skipped": float(len(self.rejects.reasons))} if self.rejects.reasons else {}
