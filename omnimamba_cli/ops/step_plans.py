"""How a decoding step's kernels are cut, by shape: shipped, never tuned at run time. One table for all chips so far.

Chosen by what `python -m tests.timing.run`, in a clone of the repository, measured on an H100.
"""

from dataclasses import dataclass
from typing import Literal

import torch

Method = Literal["vector", "tile", "library"]


@dataclass(frozen=True)
class ProductPlan:
    """One product of a few rows with a weight matrix.

    vector: whole rows of weights in registers, dot products; tile: the matrix units; library: torch's own product,
    the norm before it a kernel of its own.
    """

    method: Method
    rows: int = 0  # of weights, a program
    warps: int = 4
    columns: int = 0  # a turn of the loop; tile only
    stages: int = 1  # turns in flight; tile only


@dataclass(frozen=True)
class MixerPlan:
    """What stands between two products."""

    rows: int  # of a head's state, a program
    warps: int = 4


@dataclass(frozen=True)
class ScanPlan:
    """The scan over a prefix."""

    chunk: int  # times of one turn
    warps: int
    stages: int = 2  # turns in flight
    segments: int = 16  # at most: every segment adds up what those before it left


SCAN = ScanPlan(chunk=64, warps=4)
SCAN_FLOAT32 = ScanPlan(chunk=16, warps=8, stages=1)  # larger ones do not fit the registers
# Rows up to which dot products are fastest; beyond, the library is where it can multiply the weights as they are.
VECTOR_BATCH, VECTOR_BATCH_QUANTIZED = 2, 4
VALUES = 16_384  # weights that four warps of the vector method hold, 64 registers a thread of bfloat16


def product_plan(batch: int, columns: int, weight: torch.dtype, model: torch.dtype) -> ProductPlan:
    """The plan for x (batch columns) with weights of a dtype, in a model of another."""
    quantized = weight != model
    if batch <= (VECTOR_BATCH_QUANTIZED if quantized else VECTOR_BATCH) and columns <= 8192:
        warps = 8 if columns > 2048 else 4
        # for several rows the weights stay in registers as float32
        values = VALUES // 2 if batch > 1 or weight == torch.float32 else VALUES
        return ProductPlan("vector", rows=max(1, min(8, values * warps // 4 // columns)), warps=warps)
    if not quantized:
        return ProductPlan("library")
    if model == torch.float32:
        return ProductPlan("tile", rows=16, columns=32, stages=2)
    return ProductPlan("tile", rows=64, columns=128, warps=4, stages=3)


def mixer_plan(batch: int, p: int) -> MixerPlan:
    """The plan for `batch` rows with heads of p; a lone row is cut finer, to fill the chip.

    64 rows of a float32 state do not fit the registers of four warps.
    """
    return MixerPlan(rows=min(p, 16 if batch <= 4 else 32), warps=4)
