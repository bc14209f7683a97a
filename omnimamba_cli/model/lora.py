"""LoRA on a linear map: a low-rank pair for each task, chosen by argument, mergeable for inference.

Or one pair that both tasks use, or none: what the paper compares itself with.
"""

import math
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimamba_cli.config import Mamba2Config, Task
from omnimamba_cli.model.meta import sharing_copy
from omnimamba_cli.ops import halves

if TYPE_CHECKING:
    from omnimamba_cli.model.omnimamba import OmniMamba

M = TypeVar("M", bound="OmniMamba")


class LoRAPair(nn.Module):
    """A (r in) and B (out r); B starts at zero, so a fresh pair changes nothing."""

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, in_features))
        self.B = nn.Parameter(torch.zeros(out_features, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))


class LoRALinear(nn.Module):
    """x W^T + scale * dropout(x) A^T B^T, with the pair that the task passed in uses. No bias."""

    def __init__(self, in_features: int, out_features: int, config: Mamba2Config) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        rank = config.lora_rank
        self.scale = config.lora_alpha / rank if rank else 0.0
        self.dropout = config.lora_dropout
        self.lora = nn.ModuleDict({name: LoRAPair(in_features, out_features, rank) for name in config.lora_names})
        self.one_pair = config.lora_names == ("shared",)

    def pair(self, task: Task) -> LoRAPair | None:
        """The pair that a task uses; None without LoRA."""
        name = "shared" if self.one_pair else task
        if name not in self.lora:
            return None
        return self.lora[name]

    def forward(self, x: Tensor, task: Task) -> Tensor:
        """x (... in) to (... out) for one task.

        On CUDA up to 7 columns of padding may follow: the fast matrix kernels want a multiple of 8.
        """
        pair = self.pair(task)
        if pair is None:
            return F.linear(x, self.weight)
        if self.training and self.dropout:
            y = F.linear(x, self.weight)
            return y + F.linear(self.scale * F.linear(F.dropout(x, self.dropout), pair.A), pair.B)
        # one large product instead of a pass over the outputs
        weight = self.weight + self.scale * (pair.B @ pair.A)
        return F.linear(x, F.pad(weight, (0, 0, 0, -len(weight) % 8)) if x.is_cuda else weight)

    def merged_weight(self, task: Task) -> Tensor:
        """W + scale * B A (out in), summed in float32 and rounded once to W's dtype."""
        pair = self.pair(task)
        if pair is None or self.weight.is_meta:
            return self.weight.detach()
        delta = self.scale * (pair.B.detach().float() @ pair.A.detach().float())
        return (self.weight.detach().float() + delta).to(self.weight.dtype)


class MergedLinear(nn.Module):
    """A LoRALinear with one task's pair folded in; refuses every other task."""

    def __init__(self, source: LoRALinear, task: Task) -> None:
        super().__init__()
        self.task = task
        self.weight = nn.Parameter(source.merged_weight(task), requires_grad=False)

    def forward(self, x: Tensor, task: Task) -> Tensor:
        """x (... in) to (... out)."""
        if task != self.task:
            raise ValueError(f"this model is merged for {self.task!r}; it cannot run {task!r}")
        return halves.linear(x, self.weight)


def merged(model: M, task: Task) -> M:
    """A copy of the model for one task's inference: LoRA folded into in_proj, all other tensors shared."""
    # in_proj is rebuilt, so its tensors are never copied either
    return merge(sharing_copy(model), task)


def merge(model: M, task: Task) -> M:
    """Fold one task's pairs into the model itself, layer by layer: the other task's pairs and the base are dropped."""
    for layer in model.layers:
        layer.mixer.in_proj = MergedLinear(layer.mixer.in_proj, task)
    return model


def is_merged(model: "OmniMamba", task: Task) -> bool:
    """Whether the model has one task's pairs folded in."""
    return all(getattr(layer.mixer.in_proj, "task", None) == task for layer in model.layers)
