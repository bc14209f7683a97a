"""Linear maps in half precision on processors without instructions for it.

There the library multiplies 16-bit matrices seven times slower than 32-bit ones (AVX2, 760 rows: 2.5 s against 0.4 s
for one in_proj of the 1.3B). A prefix is long enough to pay for widening the weights, map by map; a single step, which
waits for memory, is not.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST_LENGTH = 32  # tokens of a sequence from which widening pays


@cache
def processor_has_halves() -> bool:
    """Whether this processor multiplies 16-bit floats itself; true where it is not known."""
    if torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2", "AVX512"):
        return True
    asked = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")]
    if None in asked or torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        return True
    return any(ask() for ask in asked)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (b l i) times weight (o i), plus bias (o), as F.linear gives it, in x's dtype (b l o).

    By the length l alone, not by b: a row of a batch gets what it gets alone.
    """
    narrow = x.device.type == "cpu" and weight.dtype in (torch.bfloat16, torch.float16) and x.dtype == weight.dtype
    short = x.ndim != 3 or x.shape[1] < LEAST_LENGTH
    if not narrow or short or torch.is_grad_enabled() or processor_has_halves():
        return F.linear(x, weight, bias)
    wide = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    return wide.to(x.dtype)


class Linear(nn.Linear):
    """nn.Linear by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """x (... i) to (... o)."""
        return linear(x, self.weight, self.bias)
