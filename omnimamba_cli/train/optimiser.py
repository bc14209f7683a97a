"""AdamW, the learning rate's curve, and an average of the weights. No data, no files."""

import math
from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from omnimamba_cli.train.sharding import local

BETAS = (0.9, 0.95)


def learning_rate(step: int, *, peak: float, warmup: int, steps: int, floor: float = 0.01) -> float:
    """The rate of step `step` (from 0): linear up over `warmup` steps, then a cosine to floor * peak at the last.

    Step 0 has peak / warmup, step warmup has the peak (the first after the ramp), step steps - 1 floor * peak.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    span = max(1, steps - 1 - warmup)
    done = min(1.0, (step - warmup) / span)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))


def adamw(parameters: Sequence[nn.Parameter], *, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over weights; decay, if any, on matrices alone. One fused kernel on CUDA."""
    matrices = [p for p in parameters if p.ndim >= 2]
    rest = [p for p in parameters if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    on_cuda = bool(parameters) and parameters[0].is_cuda
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=BETAS, fused=on_cuda)


def clip_gradients(
    accelerate: Accelerator, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], largest: float
) -> Tensor:
    """Make the gradients' norm at most `largest` in the optimizer's next step; returns what it was, on the device.

    A fused optimizer can divide gradients while it reads them (torch made this for scaled losses), which saves a pass.
    With the fp16 scaler, which uses that itself, and for shards, the usual extra pass is made.
    """
    fused = all(group["fused"] for group in optimizer.param_groups)
    if not fused or accelerate.scaler is not None or accelerate.distributed_type == DistributedType.FSDP:
        norm: Tensor = accelerate.clip_grad_norm_(parameters, largest)
        return norm
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    # the divisor: the inverse of clip_grad_norm_'s factor, with its 1e-6
    optimizer.grad_scale = ((norm + 1e-6) / largest).clamp(min=1.0)  # type: ignore[attr-defined]  # read by step
    return norm


class Average:
    """An exponential moving average of the trained weights; decay 0 keeps none."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.live = dict(parameters)
        self.values: dict[str, Tensor] = {n: p.detach().clone() for n, p in self.live.items()} if decay else {}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the weights after step `step` (from 0). Decay starts at 0.1, so there is no start-up bias."""
        if not self.decay:
            return
        decay = min(self.decay, (1 + step) / (10 + step))
        values, live = ([local(t) for t in tensors.values()] for tensors in (self.values, self.live))
        torch._foreach_lerp_(values, live, 1 - decay)

    def best(self) -> dict[str, Tensor]:
        """The weights to keep: the average, or without one the live weights."""
        return self.values if self.decay else {n: p.detach() for n, p in self.live.items()}

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange live weights and average; doing it twice restores both."""
        for name, value in self.values.items():
            live = self.live[name]
            kept = live.detach().clone()
            live.copy_(value)
            value.copy_(kept)
