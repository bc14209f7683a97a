"""The language model's two tasks as a job for the loop: forward passes, losses, batches."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from omnimamba_cli import ops
from omnimamba_cli.config import BAD_SHARE, Task
from omnimamba_cli.data.batches import IGNORE, Collate, DrawBatch, SketchBatch, TalkBatch, collate_sketches
from omnimamba_cli.data.codes import DrawnCodes
from omnimamba_cli.data.mixing import Order, Split, draw_batches, sample_batches
from omnimamba_cli.data.samples import Samples
from omnimamba_cli.data.sequences import mmu_middle, mmu_prefix
from omnimamba_cli.data.shards import ShardSamples
from omnimamba_cli.model.omnimamba import OmniMamba
from omnimamba_cli.model.vision import VisionTowers, narrowed
from omnimamba_cli.train.events import Event
from omnimamba_cli.train.optimiser import Average
from omnimamba_cli.train.skipping import Skipping, total

Stream = Iterator[TalkBatch] | Iterator[DrawBatch] | Iterator[SketchBatch]


@dataclass
class TaskBatches:
    """One micro-batch of each task that trains."""

    by_task: dict[Task, TalkBatch | DrawBatch]

    @property
    def tokens(self) -> int:
        """Number of tokens, of all tasks."""
        return sum(b.tokens for b in self.by_task.values())


class Objective(nn.Module):
    """Model and towers with the training loss: the one module that DDP or FSDP wraps."""

    _no_split_modules = ("Block",)  # read by accelerate: the unit that FSDP shards, unless its configuration names one

    def __init__(
        self, model: OmniMamba, towers: VisionTowers | None, weights: Mapping[Task, float], *, recompute: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.recompute = recompute  # compute layers again in the backward pass
        self.towers = towers
        self.narrowed: list[VisionTowers] = []  # see _usable_towers
        self.weights = dict(weights)
        config = model.config
        self.register_buffer("lead", torch.tensor([mmu_prefix(config)]), persistent=False)
        self.register_buffer("middle", torch.tensor([mmu_middle(config)]), persistent=False)
        # bad samples so far: a buffer, so that snapshots keep it
        self.register_buffer("skipped", torch.zeros((), dtype=torch.int64), persistent=False)

    def train(self, mode: bool = True) -> "Objective":
        """Sets train mode; the towers follow only if one of their parameters is unfrozen."""
        super().train(mode)
        if self.towers is not None:
            self.towers.train(mode and any(p.requires_grad for p in self.towers.parameters()))
        return self

    def forward(self, micro: TaskBatches, totals: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each task's summed cross-entropy over the whole step's number of targets, and "loss", their weighted sum."""
        inputs = {task: x for task, batch in micro.by_task.items() if (x := self._embedded(batch)) is not None}
        hidden = self.model.together(inputs, recompute=self.recompute and torch.is_grad_enabled()) if inputs else {}
        values = {}
        for task, batch in micro.by_task.items():
            summed = self._summed_loss(hidden[task], batch, task) if task in inputs else self._zero_loss()
            values[f"loss_{task}"] = summed / totals[task]
        loss = torch.stack([self.weights[task] * values[f"loss_{task}"] for task in micro.by_task]).sum()
        return {"loss": loss, **values}

    def _embedded(self, batch: TalkBatch | DrawBatch) -> Tensor | None:
        """The model's inputs (b l d); None for a batch without a target."""
        if isinstance(batch, DrawBatch):
            codes = batch.codes[:, :-1].long()
            return torch.cat([self.model.embed_caption(batch.prefix), self.model.embed_codes(codes)], dim=1)
        rows = []
        if len(batch.pixels):
            patches = self.model.embed_patches(self.look(batch.pixels))
            lead, middle = (ids.expand(len(patches), -1) for ids in (self.lead, self.middle))
            # one lookup: the gradient of each is as large as the table
            words = self.model.embed_text(torch.cat([lead, middle, batch.ids], dim=1))
            before, after = words.split([lead.shape[1], words.shape[1] - lead.shape[1]], dim=1)
            rows.append(torch.cat([before, patches, after], dim=1))
        if len(batch.plain):
            rows.append(self.model.embed_text(batch.plain))
        return torch.cat(rows) if rows and len(batch.targets) else None

    def look(self, pixels: Tensor) -> Tensor:
        """uint8 pixels (b 3 s s) to patches (b n vision_dim); without gradients while the towers are frozen."""
        assert self.towers is not None
        with torch.set_grad_enabled(self.towers.training):
            return self._usable_towers(self.towers, pixels.device.type)(pixels.float() / 255)

    def _usable_towers(self, towers: VisionTowers, device_type: str) -> VisionTowers:
        """The towers, or under autocast a 16-bit copy of them if they are frozen and not sharded."""
        if not torch.is_autocast_enabled(device_type) or any(p.requires_grad for p in towers.parameters()):
            return towers
        if hasattr(self, "reshard"):  # FSDP: what is whole now is gone after the step
            return towers
        if not self.narrowed:  # in a list, so that the copy is no submodule and stays out of state_dict
            self.narrowed.append(narrowed(towers, torch.get_autocast_dtype(device_type)))
        return self.narrowed[0]

    def _zero_loss(self) -> Tensor:
        """The loss of a batch without a target: 0, with a zero gradient for every weight that trains."""
        return torch.stack([p.sum() * 0.0 for p in self.parameters() if p.requires_grad]).sum()

    def _summed_loss(self, hidden: Tensor, batch: TalkBatch | DrawBatch, task: Task) -> Tensor:
        """Summed cross-entropy of the codes or answers; the head runs only where one is predicted."""
        if isinstance(batch, DrawBatch):
            hidden = hidden[:, batch.prefix.shape[1] - 1 :].flatten(0, 1)  # each code from the position before it
            targets = batch.codes.flatten().long() + self.model.first_row(task)
        else:
            hidden, targets = hidden.flatten(0, 1).index_select(0, batch.places), batch.targets
        return ops.summed_cross_entropy(self.model.training_logits(hidden, task), targets, IGNORE)


class LanguageJob:
    """Trains an Objective on conversations, drawings or both: a Job for the loop.

    Drawings are codes, or pictures with captions, which `encode` turns into codes: uint8 (b 3 s s) to (b codes).
    """

    def __init__(
        self,
        module: Objective,
        *,
        device: torch.device,
        seed: int,
        rows: Mapping[Task, int],
        talks: Samples | ShardSamples | None,
        drawings: DrawnCodes | Samples | ShardSamples | None,
        encode: Callable[[Tensor], Tensor] | None = None,
        workers: int = 0,
        accumulate: int = 1,
        ranks: int = 1,
        rank: int = 0,
        max_bad_share: float = BAD_SHARE,
    ) -> None:
        self.module, self.device, self.seed, self.workers = module, device, seed, workers
        self.talks, self.drawings, self.encode = talks, drawings, encode
        self.splits = {task: Split(n, accumulate, ranks, rank) for task, n in rows.items()}
        self.accumulate, self.rank = accumulate, rank
        self.skipping = {
            "mmu": Skipping(max_bad_share, 0 if talks is None else len(talks)),
            "t2i": Skipping(max_bad_share, 0 if drawings is None else len(drawings)),
        }

    def batches(self, step: int) -> Iterator[Sequence[TaskBatches]]:
        """Micro-batches of each step on the device."""
        if self.rank:
            self.module.skipped.zero_()  # a snapshot has the count of all processes; the first one continues it
        config = self.module.model.config
        streams: dict[Task, Stream] = {}
        read = partial(sample_batches, step=step, workers=self.workers, pin=self.device.type == "cuda")
        if isinstance(self.drawings, DrawnCodes):
            order = Order(len(self.drawings), self.seed + 1)
            streams["t2i"] = draw_batches(self.drawings, order, self.splits["t2i"], step)
        elif self.drawings is not None:
            collate = partial(collate_sketches, config)
            streams["t2i"] = read(self.drawings, self.seed + 1, self.splits["t2i"], collate=collate)
        if self.talks is not None:
            collate_talks = Collate(config)
            streams["mmu"] = read(self.talks, self.seed, self.splits["mmu"], collate=collate_talks)
        while True:
            yield [self._micro(streams) for _ in range(self.accumulate)]

    def _micro(self, streams: Mapping[Task, Stream]) -> TaskBatches:
        by_task: dict[Task, TalkBatch | DrawBatch] = {}
        for task, stream in streams.items():
            batch = next(stream)
            if isinstance(batch, SketchBatch):
                assert self.encode is not None
                by_task[task] = batch.drawn(self.encode, self.device)
            else:
                by_task[task] = batch.to(self.device)
            if new := self.skipping[task].count(by_task[task].samples, batch.bad):
                self.module.skipped += new
        return TaskBatches(by_task)

    def totals(self, micros: Sequence[TaskBatches]) -> dict[str, int]:
        """Number of targets of each task."""
        tasks = micros[0].by_task
        return {task: sum(m.by_task[task].count for m in micros) for task in tasks}

    def after_step(self, step: int, progress: float, average: Average) -> list[Event]:
        """Reports the bad samples that were met."""
        return [event for skipping in self.skipping.values() for event in skipping.said()]

    def report(self) -> dict[str, float]:
        """How many bad samples were met so far, if any."""
        skipped = total(self.module.skipped)
        return {"skipped": float(skipped)} if skipped else {}
