"""A step of the loops in decode.py: from a token to the scores of the next one.

A merged model on a CPU has a step of its own (model/row_step.py); every other model runs its forward.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from omnimamba_cli.config import Task
from omnimamba_cli.model.lora import is_merged
from omnimamba_cli.model.omnimamba import OmniMamba, check_positions
from omnimamba_cli.model.row_step import RowMemory, RowStepper
from omnimamba_cli.model.state import InferenceState
from omnimamba_cli.ops import registry

TABLE_WORK = 4_000_000_000  # multiply-adds that embedding all codes in advance may cost: a tenth of a second
# weights; up to here one thread is as fast as two, and on a busy machine it never waits for another
ONE_THREAD = 100_000_000


class Steps(Protocol):
    """A batch of sequences that continue token by token."""

    def __call__(self, tokens: Tensor) -> Tensor:
        """Read the tokens (b); returns scores (b v) float32 of what follows, valid until the next call."""

    def select(self, rows: Tensor) -> None:
        """Keep only the given rows (b') of the batch."""


class PlainSteps:
    """The model's own forward, on any device, merged or not."""

    def __init__(self, model: OmniMamba, task: Task, state: InferenceState) -> None:
        self.model, self.task, self.state = model, task, state

    def __call__(self, tokens: Tensor) -> Tensor:
        """See Steps."""
        model = self.model
        x = model.embed_text(tokens[:, None]) if self.task == "mmu" else model.embed_codes(tokens[:, None])
        return model.logits(model(x, self.task, self.state)[:, -1], self.task).float()

    def select(self, rows: Tensor) -> None:
        """See Steps."""
        self.state = self.state.select(rows)


class RowSteps:
    """The step of a merged model on a CPU."""

    def __init__(self, model: OmniMamba, task: Task, state: InferenceState) -> None:
        self.model, self.task = model, task
        prepared = _prepared(model, task)
        self.stepper, self.table = prepared.stepper, prepared.table
        self.places = model.positions(task)
        self.memory = RowMemory(model.config.backbone, state, len(model.head(task)))
        small = sum(p.numel() for p in model.layers.parameters()) <= ONE_THREAD
        self.threads = 1 if small else torch.get_num_threads()

    def __call__(self, tokens: Tensor) -> Tensor:
        """See Steps."""
        m = self.memory
        check_positions(m.position + 1, len(self.places), self.task)
        with _threads(self.threads):
            torch.add(self._embedded(tokens), self.places[m.position], out=m.residual)
            return self.stepper.step(m)

    def _embedded(self, tokens: Tensor) -> Tensor:
        if self.table is not None:
            return self.table[tokens]
        return self.model.embed_text(tokens) if self.task == "mmu" else self.model.embed_codes(tokens)

    def select(self, rows: Tensor) -> None:
        """See Steps."""
        self.memory.select(rows, self.model.config.backbone)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if number == before:
        yield
        return
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def steps_for(model: OmniMamba, task: Task, state: InferenceState) -> Steps:
    """The fastest Steps for a model and a task, starting from a state."""
    if is_merged(model, task) and registry.row_step_refusal(model.norm_f.weight) is None:
        return RowSteps(model, task, state)
    return PlainSteps(model, task, state)


@dataclass(frozen=True)
class Prepared:
    """What all batches of a merged model share."""

    stepper: RowStepper
    table: Tensor | None  # (v d) float32, all codes embedded; None where that would take long
    made_of: nn.Module  # the first layer's in_proj: if it is another now, the model was quantized since


_made: WeakKeyDictionary[OmniMamba, dict[Task, Prepared]] = WeakKeyDictionary()


def _prepared(model: OmniMamba, task: Task) -> Prepared:
    """The prepared parts, made once for each model and task."""
    made, first = _made.setdefault(model, {}), model.get_submodule("layers.0.mixer.in_proj")
    if task not in made or made[task].made_of is not first:
        with torch.inference_mode(False), torch.no_grad():  # the model keeps some of these tensors
            made[task] = Prepared(RowStepper(model, task), _code_table(model) if task == "t2i" else None, first)
    return made[task]


def _code_table(model: OmniMamba) -> Tensor | None:
    entries = model.head("t2i")
    if len(entries) * sum(p.numel() for p in model.image_mlp.parameters()) > TABLE_WORK:
        return None
    return model.image_mlp(entries).float()  # type: ignore[no-any-return]  # a module's call
