"""Adapter to the mamba-ssm package's Triton scan (forward and backward), where it is installed.

Only the scan: its Triton parts need no compiled extension. Held to ops/reference.py by tests/ops.
"""

import functools

import torch
from torch import Tensor


@functools.cache
def _load() -> tuple[object | None, str]:
    """The package's scan and why it cannot be had."""
    try:
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
    except (ImportError, OSError) as error:  # OSError: a shared library that it loads by itself is not there
        return None, f"mamba-ssm cannot be imported ({error}); pip install 'omnimamba-cli[cuda]'"
    return mamba_chunk_scan_combined, ""


def refusal(x: Tensor) -> str | None:
    """Why this backend cannot scan x (b l h p); None when it can."""
    if not x.is_cuda:
        return f"needs a CUDA device, the tensors are on {x.device.type}"
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"does not know dtype {x.dtype}"
    scan, why = _load()
    return why if scan is None else None


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    *,
    chunk_size: int,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Same contract as reference.ssd_scan."""
    scan, _ = _load()
    assert callable(scan)
    # the kernels take powers of two of at least 16 rows
    chunk = max(16, 1 << (chunk_size - 1).bit_length())
    y, last = scan(x, dt, A, B, C, chunk, D=D, initial_states=state, return_final_states=True)
    return y, last
