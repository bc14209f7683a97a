"""How the kernels of training are cut: shipped, never tuned at run time. One table for all chips so far.

Chosen by what `python -m tests.timing.training`, in a clone of the repository, measured on an H100.
"""

from dataclasses import dataclass


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
    heads: int = 0  # of a group, one program; dB and dC are summed over the programs' parts
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
    """Neighbouring rows (times) and columns (channels) of one program."""

    rows: int
    columns: int
    warps: int = 4
    turns: int = 1  # tiles of rows one after the other


@dataclass(frozen=True)
class WalkPlan:
    """Some channels of a sequence, time after time."""

    columns: int
    warps: int
    turns: int  # of four times each, one program


@dataclass(frozen=True)
class RowPlan:
    """Whole rows one after the other."""

    warps: int
    programs: int  # at most
    registers: int | None = None  # a thread, at most: fewer than the compiler would take, for more programs at a time


SCAN_FORWARD = ScanForwardPlan(chunk=32, warps=4, stages=2)
SCAN_FORWARD_FLOAT32 = ScanForwardPlan(chunk=16, warps=8, stages=1)  # larger ones do not fit the registers
SCAN_GRADIENT = ScanGradientPlan(
    chunk=64,
    states=ScanKernel(4, 2, registers=168),
    between=ScanKernel(8, 3, heads=16),
    within=ScanKernel(4, 3, heads=16),
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
