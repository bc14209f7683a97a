"""Linear maps on a CPU whose weights are kept in 16 bits and multiplied in float32, by FBGEMM, a part of PyTorch.

Without AVX-512 PyTorch's own bfloat16 products run at a fraction of the memory's speed, and for many rows slower
still. Here weights are read once, in half the bytes of float32, and widened in registers. float16 keeps every
bfloat16 weight between 6e-5 and 65,504 exactly; smaller ones to 3e-8.
"""

from typing import Any

import torch
from torch import Tensor

Packed = Any  # a TorchScript object: weights (o i) in blocks, and a bias
LARGEST = 65_504.0  # of float16


def refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why weights of a dtype on a device are not packed; None when they can be."""
    if device.type != "cpu":
        return f"needs a CPU, the tensors are on {device.type}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"is for 16-bit weights, these are {str(dtype).removeprefix('torch.')}"
    if torch.backends.quantized.engine not in ("fbgemm", "x86"):
        return f"this PyTorch computes with {torch.backends.quantized.engine or 'nothing'}, not with FBGEMM"
    return None


def pack(weight: Tensor, bias: Tensor | None = None) -> Packed:
    """Weights (o i) and bias (o) in FBGEMM's order. Raises ValueError for a weight that float16 cannot hold."""
    low, high = (float(v) for v in weight.detach().aminmax())
    if not (low >= -LARGEST and high <= LARGEST):  # NaN too
        raise ValueError(f"weights are from {low:g} to {high:g}; float16 holds up to {LARGEST:g}")
    return torch.ops.quantized.linear_prepack_fp16(
        weight.detach().float(), None if bias is None else bias.detach().float()
    )


def linear(x: Tensor, packed: Packed) -> Tensor:
    """x (... i) to (... o) in x's dtype; products and sums in float32."""
    return torch.ops.quantized.linear_dynamic_fp16(x.float(), packed).to(x.dtype)
