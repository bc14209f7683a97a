"""Weights of one byte for inference: int8 or float8 (e4m3), with a float32 scale for each output row.

Only what every decoding step reads in full is quantized: in_proj, out_proj and the task's head. Embeddings, norms, the
convolution and what runs once a sequence keep their dtype. On a CPU int8 is packed, see ops/packed_int8.py.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimamba_cli.config import Task
from omnimamba_cli.model.omnimamba import OmniMamba
from omnimamba_cli.ops import packed_int8

Quantization = Literal["int8", "fp8"]
QUANTIZATIONS: tuple[Quantization, ...] = ("int8", "fp8")
SLAB = 1 << 20  # weights narrowed at a time
SHRINK = 2.0**-7  # narrow weights are large numbers: without it a product soon passes 65,504, where float16 ends
LARGEST = {"int8": 127.0, "fp8": 448.0}  # of e4m3 without infinities


def quantize_rows(weight: Tensor, kind: Quantization) -> tuple[Tensor, Tensor]:
    """weight (o i) to values (o i) of one byte and scale (o) float32; values * scale is the weight, rounded."""
    # in slabs: the float32 copies then stay small
    slabs = [_quantize_slab(slab, kind) for slab in weight.detach().split(max(1, SLAB // weight.shape[1]))]
    return torch.cat([values for values, _ in slabs]), torch.cat([scale for _, scale in slabs])


def _quantize_slab(rows: Tensor, kind: Quantization) -> tuple[Tensor, Tensor]:
    wide = rows.float()
    scale = (wide.abs().amax(1) / LARGEST[kind]).clamp(min=torch.finfo(torch.float32).tiny)
    values = wide / scale[:, None]
    if kind == "int8":
        return values.round().clamp(-127, 127).to(torch.int8), scale
    return values.to(torch.float8_e4m3fn), scale


def scaled_linear(x: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
    """x (... i) times weight (o i), to (... o) in x's dtype. Weights of one byte have a scale (o); others have None."""
    if scale is None:
        return F.linear(x, weight)
    # scaled after the product: the narrow values are exact in half precision, the scaled ones are not
    y = F.linear(x * SHRINK, weight.to(x.dtype))
    return (y * (scale / SHRINK)).to(x.dtype)


class QuantizedLinear(nn.Module):
    """A linear map with narrow weights, without bias; they are widened for each product, and scaled after it."""

    def __init__(self, weight: Tensor, kind: Quantization, task: Task | None = None) -> None:
        super().__init__()
        self.task = task
        values, scale = quantize_rows(weight, kind)
        # not trained, and not cast by .to(dtype): buffers keep their own
        self.register_buffer("weight", values)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor, task: Task | None = None) -> Tensor:
        """x (... i) to (... o); a map made for one task refuses every other."""
        _check_task(self.task, task)
        return scaled_linear(x, self.weight, self.scale)


class PackedLinear(nn.Module):
    """A linear map with int8 weights on a CPU, without bias; prefixes and steps run on the same packed weights."""

    def __init__(self, weight: Tensor, task: Task | None = None) -> None:
        super().__init__()
        self.task = task
        self.product = packed_int8.PackedInt8(*quantize_rows(weight, "int8"))

    def forward(self, x: Tensor, task: Task | None = None) -> Tensor:
        """x (... i) to (... o) in x's dtype; a map made for one task refuses every other."""
        _check_task(self.task, task)
        y = self.product(x.reshape(-1, x.shape[-1]).float())
        return y.view(*x.shape[:-1], -1).to(x.dtype)


def _check_task(made_for: Task | None, task: Task | None) -> None:
    if task != made_for:
        raise ValueError(f"this model is quantized for {made_for!r}; it cannot run {task!r}")


def quantize(model: OmniMamba, task: Task, kind: Quantization, *, pack: bool = False) -> OmniMamba:
    """The same model, merged for a task, with narrow weights; in place, layer by layer, to need no second copy.

    `pack`: int8 for the processor, where packed_int8 does not refuse.
    """

    def narrow(weight: Tensor, task: Task | None = None) -> nn.Module:
        return PackedLinear(weight, task) if pack else QuantizedLinear(weight, kind, task)

    def narrow_layer(layer: nn.Module) -> None:
        layer.mixer.in_proj = narrow(layer.mixer.in_proj.weight, task)
        if not isinstance(layer.mixer.out_proj, QuantizedLinear | PackedLinear):  # the other task's may have been first
            layer.mixer.out_proj = narrow(layer.mixer.out_proj.weight)

    # FBGEMM puts a matrix in order on one thread, a tenth of a second for each of the 1.3B
    with ThreadPoolExecutor(torch.get_num_threads() if pack else 1) as pool:
        list(pool.map(narrow_layer, model.layers))
    model.narrow_heads[task] = narrow(model.head(task))
    return model
