"""Linear maps in half precision on processors without instructions for it.

There torch multiplies 16-bit matrices seven times slower than 32-bit ones (AVX2, 760 rows: 2.5 s against 0.4 s for one
in_proj of the 1.3B); for a single row it has a fast path, bound by memory. So a few rows are multiplied one by one, and
for more rows the weights are cast to float32 first.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST_ROWS = 8  # from here on casting the weights pays


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
    """x (... i) times weight (o i), plus bias (o), as F.linear gives it, in x's dtype (... o)."""
    narrow = x.device.type == "cpu" and weight.dtype in (torch.bfloat16, torch.float16) and x.dtype == weight.dtype
    rows = x.numel() // x.shape[-1]
    if not narrow or rows < 2 or torch.is_grad_enabled() or processor_has_halves():
        return F.linear(x, weight, bias)
    if rows < LEAST_ROWS:
        each = [F.linear(row, weight, bias) for row in x.reshape(rows, 1, -1)]
        return torch.cat(each).view(*x.shape[:-1], len(weight))
    wide = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    return wide.to(x.dtype)


class Linear(nn.Linear):
    """nn.Linear by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """x (... i) to (... o)."""
        return linear(x, self.weight, self.bias)
