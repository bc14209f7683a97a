"""Linear maps in half precision on processors without instructions for it.

There torch multiplies 16-bit matrices seven times slower than 32-bit ones (AVX2, 760 rows: 2.5 s against 0.4 s for one
in_proj of the 1.3B); for a single row it has a fast path, bound by memory. So a few rows are multiplied one by one, and
for more rows the weights are cast to float32 first.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

X86 = ("AVX2", "AVX512")  # torch's names of what an x86 processor is capable of
LEAST_ROWS = 8  # from here on casting the weights pays


@cache
def processor_multiplies(dtype: torch.dtype) -> bool:
    """Whether this processor multiplies 16-bit floats of this dtype itself; true where it is not known."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in X86:
        return True
    if capability == "AVX2":
        return False
    if dtype == torch.float16:
        asked = [getattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", None)]
    else:
        asked = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")]
    return None in asked or any(ask() for ask in asked)


def fastest_half() -> torch.dtype:
    """The 16-bit dtype for decoding on this processor.

    On x86 torch multiplies one row with float16 weights in half the time that bfloat16 ones take, also where the
    processor has instructions for the latter.
    """
    return torch.float16 if torch.backends.cpu.get_cpu_capability() in X86 else torch.bfloat16


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (... i) times weight (o i), plus bias (o), as F.linear gives it, in x's dtype (... o)."""
    narrow = x.device.type == "cpu" and weight.dtype in (torch.bfloat16, torch.float16) and x.dtype == weight.dtype
    rows = x.numel() // x.shape[-1]
    if not narrow or rows < 2 or torch.is_grad_enabled() or processor_multiplies(x.dtype):
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
