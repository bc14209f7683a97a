"""Products of a few rows with a weight matrix on a CPU, with the weights laid out as they are read fastest.

A decoding step reads every weight for one or a few rows, so its time is the time to read the weights.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimamba_cli.ops import halves

LARGEST_COPIED = 1 << 22  # weights; a larger matrix is not copied to be transposed, but stays in its mapped file


class RowProduct(Protocol):
    """x (b i) float32 times a weight (o i)."""

    def write(self, x: Tensor, out: Tensor) -> None:
        """The product into out (b o) float32."""

    def add(self, x: Tensor, out: Tensor) -> None:
        """The product onto out (b o) float32."""


class Transposed:
    """float32 weights kept as (i o): for one row torch is then twice as fast, since it adds up whole rows."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.t()
        if weight.numel() <= LARGEST_COPIED:
            self.weight = self.weight.contiguous()

    def write(self, x: Tensor, out: Tensor) -> None:
        """See RowProduct."""
        torch.mm(x, self.weight, out=out)

    def add(self, x: Tensor, out: Tensor) -> None:
        """See RowProduct."""
        out.addmm_(x, self.weight)


class Halves:
    """16-bit weights as they are stored; see halves.linear."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def _product(self, x: Tensor) -> Tensor:
        return halves.linear(x.to(self.weight.dtype), self.weight)

    def write(self, x: Tensor, out: Tensor) -> None:
        """See RowProduct."""
        out.copy_(self._product(x))

    def add(self, x: Tensor, out: Tensor) -> None:
        """See RowProduct."""
        out += self._product(x)


class Widened:
    """8-bit weights where packed_int8 does not run: cast to float32 for each product, scaled after it."""

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        self.weight, self.scale = weight, scale

    def _product(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.float()).mul_(self.scale)

    def write(self, x: Tensor, out: Tensor) -> None:
        """See RowProduct."""
        out.copy_(self._product(x))

    def add(self, x: Tensor, out: Tensor) -> None:
        """See RowProduct."""
        out += self._product(x)


def row_product(source: Tensor | nn.Module) -> RowProduct:
    """The product with a weight (o i), or with a module's weight; a module then shares the transposed copy."""
    if isinstance(source, nn.Module) and hasattr(source, "product"):
        packed: RowProduct = source.product
        return packed
    weight = source if isinstance(source, Tensor) else source.weight.detach()
    if weight.dtype in (torch.float16, torch.bfloat16):
        return Halves(weight)
    if weight.dtype != torch.float32:
        assert isinstance(source, nn.Module)  # a narrow weight comes with its scale
        return Widened(weight, source.scale)
    product = Transposed(weight)
    if isinstance(source, nn.Module):
        source.weight = nn.Parameter(product.weight.t(), requires_grad=False)
    return product
