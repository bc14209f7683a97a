"""Tile sizes of the kernels of training: shipped, never tuned at run time.

Chosen by what `python -m tests.timing.training`, in a clone of the repository, measured on an H100. SCAN_GRADIENT_SMALL
is for chips with less shared memory (see ops/chips.py), and for larger states; it fits by tests/ops/test_plans.py and
was not timed.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ScanForwardPlan:
    """The scan's forward pass, which keeps the state of a row and head in registers."""

    chunk: int  # times of one turn of its loop
    warps: int
    stages: int  # turns in flight


@dataclass(frozen=True)
class ScanKernel:
    """One kernel of the scan's backward pass."""

    warps: int
    stages: int  # turns of its loop, over chunks or heads, in flight
    heads: int = 0  # heads of a group in one program; dB and dC are summed over the programs
    registers: int | None = None  # see RowPlan


@dataclass(frozen=True)
class ScanGradientPlan:
    """The scan's backward pass: the states between chunks, then the gradients of all chunks at the same time."""

    chunk: int  # times between two states that are kept
    states: ScanKernel
    between: ScanKernel
    within: ScanKernel


@dataclass(frozen=True)
class TilePlan:
    """A program works on a tile of rows (times) and columns (channels)."""

    rows: int
    columns: int
    warps: int = 4
    turns: int = 1  # tiles of rows that a program does one after another


@dataclass(frozen=True)
class WalkPlan:
    """A program walks along the times of a sequence, for some channels."""

    columns: int
    warps: int
    turns: int  # of a program; four times each


@dataclass(frozen=True)
class RowPlan:
    """A program works on whole rows, one after another."""

    warps: int
    programs: int  # at most
    registers: int | None = None  # of a thread, at most; fewer than the compiler takes let more programs run at once


SCAN_FORWARD = ScanForwardPlan(chunk=32, warps=4, stages=2)
SCAN_FORWARD_FLOAT32 = ScanForwardPlan(chunk=16, warps=8, stages=1)  # larger ones do not fit the registers
SCAN_GRADIENT = ScanGradientPlan(
    chunk=64,
    states=ScanKernel(4, 2, registers=168),
    between=ScanKernel(8, 3, heads=16),
    within=ScanKernel(4, 3, heads=16),
)
SCAN_GRADIENT_SMALL = ScanGradientPlan(
    chunk=32,
    states=ScanKernel(4, 2, registers=168),
    between=ScanKernel(8, 2, heads=16),
    within=ScanKernel(4, 2, heads=16),
)
# of float32 in full: no matrix units, large tiles do not fit
SCAN_GRADIENT_FLOAT32 = ScanGradientPlan(
    chunk=16, states=ScanKernel(8, 1), between=ScanKernel(8, 1, heads=16), within=ScanKernel(8, 1, heads=16)
)
CONV = TilePlan(rows=32, columns=64)
CONV_GRADIENT = WalkPlan(columns=128, warps=1, turns=32)
NORM_GRADIENT = RowPlan(warps=8, programs=1056)
GATED_NORM_GRADIENT = RowPlan(warps=8, programs=264, registers=128)
LORA = TilePlan(rows=32, columns=128)
LORA_GRADIENT = TilePlan(rows=32, columns=128, turns=32)
STEP_SIZE = TilePlan(rows=64, columns=64)
RESIDUAL_GRADIENT = RowPlan(warps=8, programs=396, registers=80)
JOIN = TilePlan(rows=8, columns=512)


def scan_gradient_plan(state: int, dtype: torch.dtype, *, large: bool) -> ScanGradientPlan:
    """The plan of a scan's gradient in a dtype, for heads whose state has so many values (p n).

    `large`: see chips.is_large.
    """
    if dtype == torch.float32:
        return SCAN_GRADIENT_FLOAT32
    return SCAN_GRADIENT if large and state <= 64 * 128 else SCAN_GRADIENT_SMALL
