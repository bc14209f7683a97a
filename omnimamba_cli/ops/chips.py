"""What a GPU gives one program of a kernel: the plans of tiles depend on it."""

import functools
from contextlib import AbstractContextManager, nullcontext

import torch

LARGE = 227 * 1024  # bytes of shared memory, from the H100 on; an A100 gives 163 KB, GeForce cards 99
OLDEST = (8, 0)  # compute capability that Triton supports


@functools.cache
def is_large(device: torch.device) -> bool:
    """Whether a program may have as much shared memory as on an H100; without a GPU kernels are interpreted: True."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return True
    return getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0) >= LARGE


def largest_state(device: torch.device, dtype: torch.dtype) -> int:
    """Values of a head's state (p n) whose tiles fit one program of a scan of `dtype`."""
    return 64 * 256 if dtype != torch.float32 or is_large(device) else 64 * 128


@functools.cache
def refusal(device: torch.device) -> str | None:
    """Why our kernels do not run on a CUDA device; None where they do."""
    if torch.version.hip:
        return "was never tried on an AMD GPU"
    capability = torch.cuda.get_device_capability(device)
    if capability >= OLDEST:
        return None
    older, oldest = ("{}.{}".format(*c) for c in (capability, OLDEST))
    return f"needs compute capability {oldest}, this GPU has {older}"


def at(device: torch.device) -> AbstractContextManager[None]:
    """Makes a CUDA device the present one: Triton and graphs run there, wherever their tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
