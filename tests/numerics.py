"""How tensors are compared here."""

import torch
from torch import Tensor


def relative_error(reference: Tensor, got: Tensor) -> float:
    """Root mean square of the difference over that of the reference (over 1 where the reference is all but zero)."""
    reference, got = reference.detach().double(), got.detach().double()
    size = float(reference.norm())
    return float((reference - got).norm()) / (size if size > 1e-9 else 1.0)


def assert_close(name: str, reference: Tensor, got: Tensor, tolerance: float) -> None:
    """Fails on another shape, on NaN or infinity, and above a relative RMS error; says which tensor."""
    assert reference.shape == got.shape, f"{name}: shape {tuple(got.shape)} instead of {tuple(reference.shape)}"
    assert torch.isfinite(got).all(), f"{name}: not finite"
    error = relative_error(reference, got)
    assert error <= tolerance, f"{name}: relative error {error:.2e} is above {tolerance:.0e}"
