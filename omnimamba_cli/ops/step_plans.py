"""Tile sizes of a decoding step's kernels, by shape and chip: shipped, never tuned at run time.

Those of large chips (see ops/chips.py) are chosen by what `python -m tests.timing.run`, in a clone of the repository,
measured on an H100. Those of smaller ones fit what such a chip has, by tests/ops/test_plans.py; none was timed.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch

Method = Literal["vector", "tile", "library"]


@dataclass(frozen=True)
class ProductPlan:
    """One product of some rows with a weight matrix.

    vector: whole weight rows in registers, dot products, with the norm before the product; tile: matrix units, the sum
    over columns cut into `splits` parts; library: torch.mm. A program is one instance of a kernel.
    """

    method: Method
    rows: int = 0  # weight rows of a program
    warps: int = 4
    columns: int = 0  # of one turn of the loop; tile only
    stages: int = 1  # turns in flight; tile only
    splits: int = 1  # more than 1 where a narrow matrix would leave most of the GPU idle; tile only
    ahead: int = 0  # columns of a part that are fetched while the kernel before still runs; power of two; tile only
    late: int | None = None  # turns left when the next kernel may start; None: it may at once; tile only


@dataclass(frozen=True)
class MixerPlan:
    """The mixer: what runs between in_proj and out_proj."""

    rows: int  # of a head's state in one program; a power of two
    warps: int = 4

    def tile(self, headdim: int) -> int:
        """Rows of a head's state in one program, no more than the head has; a power of two."""
        return min(self.rows, 1 << (headdim - 1).bit_length())

    def programs(self, headdim: int) -> int:
        """Programs that share one head."""
        return -(-headdim // self.tile(headdim))


@dataclass(frozen=True)
class BatchPlan:
    """A step of many rows: in_proj, out_proj, head and the mixer."""

    into: ProductPlan
    out: ProductPlan
    head: ProductPlan
    mixer: MixerPlan


@dataclass(frozen=True)
class ScanPlan:
    """The scan over a prefix."""

    chunk: int  # times of one turn
    warps: int
    stages: int = 2  # turns in flight
    segments: int = 16  # at most: every segment adds up what those before it left


SCAN = ScanPlan(chunk=32, warps=4)
SCAN_MIDDLE = ScanPlan(chunk=64, warps=4)  # one prefix of some hundred tokens, on a large chip
SCAN_FLOAT32 = ScanPlan(chunk=16, warps=8, stages=1)  # larger ones do not fit the registers
# up to so many rows dot products are fastest
VECTOR_BATCH, VECTOR_BATCH_QUANTIZED = 2, 4
VALUES = 16_384  # weights that four warps of the vector method hold: 64 registers a thread in bfloat16


def vector_plan(batch: int, columns: int, weight: torch.dtype) -> ProductPlan:
    """The vector plan for x (batch columns) of few rows and weights of a dtype."""
    warps = 8 if columns > 2048 else 4
    # for several rows the weights stay in registers as float32
    values = VALUES // 2 if batch > 1 or weight == torch.float32 else VALUES
    return ProductPlan("vector", rows=max(1, min(8, values * warps // 4 // columns)), warps=warps)


def scan_plan(batch: int, length: int, dtype: torch.dtype, *, large: bool) -> ScanPlan:
    """The plan of the scan over prefixes (batch length) of a dtype. `large`: see chips.is_large."""
    if dtype == torch.float32:
        return SCAN_FLOAT32
    return SCAN_MIDDLE if large and length > 128 and batch * length < 4096 else SCAN


def batch_plan(batch: int, weight: torch.dtype, model: torch.dtype, *, large: bool) -> BatchPlan | None:
    """The plan for more rows than the vector method is fastest for; None for fewer. `large`: see chips.is_large."""
    quantized = weight != model
    if batch <= (VECTOR_BATCH_QUANTIZED if quantized else VECTOR_BATCH):
        return None
    if model == torch.float32:
        product = ProductPlan("tile", rows=16, columns=32, stages=2) if quantized else ProductPlan("library")
        return BatchPlan(product, product, product, mixer_plan(batch))
    if not large:
        product = ProductPlan("tile", rows=64, columns=64, stages=4)
        return BatchPlan(product, replace(product, splits=4), product, MixerPlan(rows=32, warps=2))
    head = ProductPlan("tile", rows=64, columns=64, stages=5)
    if batch > 32:
        out = ProductPlan("tile", rows=64, columns=128, stages=4, splits=4)
        return BatchPlan(replace(head, late=8), out, head, MixerPlan(rows=32, warps=2))
    into = replace(head, stages=8, ahead=256, late=12)
    out = ProductPlan("tile", rows=64, columns=128, stages=6, splits=4, ahead=512, late=4)
    return BatchPlan(into, out, replace(head, ahead=256), MixerPlan(rows=32, warps=2))


def mixer_plan(batch: int) -> MixerPlan:
    """The mixer's plan for `batch` rows where the mixer also convolves; few rows are cut finer, to fill the GPU.

    32 at most: 64 rows of a float32 state do not fit the registers of four warps.
    """
    return MixerPlan(rows=16, warps=2) if batch <= 4 else MixerPlan(rows=32, warps=4)
