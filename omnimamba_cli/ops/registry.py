"""Chooses a backend per call, by device, dtype and what is installed, and can say why.

OMNIMAMBA_KERNELS=torch forces plain PyTorch, =triton or =mamba-ssm insists on those; unset or auto picks the fastest
that does not refuse.
"""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from omnimamba_cli.errors import DeviceError
from omnimamba_cli.ops import chips, in_place, mamba_ssm, packed_int8, reference
from omnimamba_cli.ops.step import StepKernels

ENVIRONMENT = "OMNIMAMBA_KERNELS"
PDL_ENVIRONMENT = "OMNIMAMBA_PDL"  # 0: no kernel of a step starts before the one before it ends
BACKENDS = ("auto", "torch", "triton", "mamba-ssm")
MOST_TAPS = 4  # of a convolution
LARGEST_RANK = 64  # of a LoRA pair: the block's backward pass reads all its rows for every token


@dataclass(frozen=True)
class KernelChoice:
    """One operation on one device: a backend, whether it is used, and the reason."""

    op: str
    backend: str
    chosen: bool
    reason: str


def requested() -> str:
    """What the environment asks for. Raises DeviceError for a word that is none of BACKENDS."""
    name = os.environ.get(ENVIRONMENT, "auto") or "auto"
    if name not in BACKENDS:
        raise DeviceError(
            f"{ENVIRONMENT}={name} names no kernels", hint=f"set {ENVIRONMENT} to one of {', '.join(BACKENDS)}"
        )
    return name


@functools.cache
def _triton() -> tuple[ModuleType | None, ModuleType | None, str]:
    """Our Triton modules, scan and fused; or None twice and why they cannot be imported."""
    try:
        from omnimamba_cli.ops import triton_fused, triton_scan
    except (ImportError, OSError) as error:  # OSError: a shared library that it loads by itself is not there
        return None, None, f"Triton cannot be imported ({error})"
    return triton_scan, triton_fused, ""


def _triton_refusal(x: Tensor) -> str | None:
    """Why our Triton kernels cannot run on x; None when they can."""
    if not x.is_cuda:
        return f"needs a CUDA device, the tensors are on {x.device.type}"
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"does not know dtype {x.dtype}"
    return chips.refusal(x.device) or _triton()[2] or None


def _state_refusal(x: Tensor, p: int, n: int) -> str | None:
    """Why our scans cannot run on tensors like x with heads of p x n; None when they can."""
    largest = chips.largest_state(x.device, x.dtype)
    return f"a head of {p} x {n} is larger than the {largest} values a program holds" if p * n > largest else None


def _scan_refusal(x: Tensor, d_state: int) -> str | None:
    """Why our Triton scan cannot run on x (b l h p) with states of d_state."""
    return _state_refusal(x, x.shape[-1], d_state) or _triton_refusal(x)


def _scan_backends(x: Tensor, d_state: int) -> list[tuple[str, str | None]]:
    """Backends of the scan from the fastest, each with its refusal."""
    return [("triton", _scan_refusal(x, d_state)), ("mamba-ssm", mamba_ssm.refusal(x)), ("torch", None)]


def _pick(backends: list[tuple[str, str | None]]) -> str:
    """The first backend that does not refuse, or the requested one. Raises DeviceError where that one refuses."""
    name = requested()
    for backend, refusal in backends:
        if name in ("auto", backend):
            if refusal is None:
                return backend
            if name == backend:
                raise DeviceError(f"{ENVIRONMENT}={name}, but it {refusal}", hint=f"unset {ENVIRONMENT}")
    return "torch"


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
    """See reference.ssd_scan; runs on the best backend for x."""
    backend = _pick(_scan_backends(x, B.shape[-1])) if x.is_cuda or requested() != "auto" else "torch"
    if backend == "triton":
        module, _, _ = _triton()
        assert module is not None  # refused otherwise
        scan: Callable[..., tuple[Tensor, Tensor]] = module.ssd_scan
        return scan(x, dt, A, B, C, D, state=state)
    if backend == "mamba-ssm":
        return mamba_ssm.ssd_scan(x, dt, A, B, C, D, chunk_size=chunk_size, state=state)
    if _writes_in_place(x):
        return in_place.ssd_scan(x, dt, A, B, C, D, state=state)
    return reference.ssd_scan(x, dt, A, B, C, D, chunk_size=chunk_size, state=state)


def _writes_in_place(x: Tensor) -> bool:
    """Whether ops/in_place.py runs: on a CPU, without gradients, unless a backend is requested by name."""
    return x.device.type == "cpu" and not torch.is_grad_enabled() and requested() == "auto"


def _fused(x: Tensor) -> ModuleType:
    """The module whose convolution, norms and loss run on x: triton_fused, or reference."""
    if not x.is_cuda or requested() == "torch" or _triton_refusal(x) is not None:
        return reference
    module = _triton()[1]
    assert module is not None  # refused otherwise
    return module


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor, history: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See reference.causal_conv."""
    k = weight.shape[1]
    if _writes_in_place(x) and x.dtype in (torch.float32, torch.float64) and weight.dtype == x.dtype:
        return in_place.causal_conv(x, weight, bias, history)
    module = _fused(x) if k <= MOST_TAPS else reference
    return module.causal_conv(x, weight, bias, history)  # type: ignore[no-any-return]  # one contract, two modules


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None = None) -> Tensor:
    """See reference.rms_norm."""
    return _fused(x).rms_norm(x, weight, eps, dtype)  # type: ignore[no-any-return]


def gated_rms_norm(y: Tensor, z: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See reference.gated_rms_norm."""
    return _fused(y).gated_rms_norm(y, z, weight, eps)  # type: ignore[no-any-return]


def summed_cross_entropy(logits: Tensor, targets: Tensor, ignored: int) -> Tensor:
    """See reference.summed_cross_entropy."""
    return _fused(logits).summed_cross_entropy(logits, targets, ignored)  # type: ignore[no-any-return]


@functools.cache
def block_module() -> ModuleType:
    """The module that runs a whole block as one step of autograd; see `block_refusal`."""
    from omnimamba_cli.ops import triton_block

    return triton_block


def block_refusal(residual: Tensor, p: int, n: int, k: int, rank: int) -> str | None:
    """Why a block does not train as one step of autograd on this residual; None where it does.

    The block has heads of p x n, k convolution taps and LoRA pairs of a rank.
    """
    if requested() not in ("auto", "triton"):
        return f"{ENVIRONMENT}={requested()}"
    if not torch.is_grad_enabled():
        return "no gradients are wanted"
    if k > MOST_TAPS:
        return f"{k} taps are more than {MOST_TAPS}"
    if rank > LARGEST_RANK:
        return f"a LoRA pair of rank {rank} is larger than {LARGEST_RANK}"
    return _state_refusal(residual, p, n) or _triton_refusal(residual)


@functools.cache
def _step_modules() -> tuple[tuple[ModuleType, ...], str]:
    """Our Triton modules for decoding, in the order of StepKernels' fields; or none and why they cannot be imported."""
    try:
        from omnimamba_cli.ops import triton_batch, triton_draw, triton_prefill, triton_step
    except (ImportError, OSError) as error:  # OSError: a shared library that it loads by itself is not there
        return (), f"Triton cannot be imported ({error})"
    return (triton_step, triton_batch, triton_draw, triton_prefill), ""


def _step_refusal(probe: Tensor) -> str | None:
    """Why our kernels of a decoding step cannot run on tensors like this one; None when they can."""
    return _triton_refusal(probe) or _step_modules()[1] or None


def _pdl_refusal(device: torch.device) -> str | None:
    """Why kernels cannot start before the one before them ends; None when they can."""
    if os.environ.get(PDL_ENVIRONMENT) == "0":
        return f"{PDL_ENVIRONMENT}=0"
    if torch.cuda.get_device_capability(device)[0] < 9:
        return "this chip has no programmatic dependent launch"
    has_pdl = _step_modules()[0][0].HAS_PDL
    return None if has_pdl else "this Triton has no programmatic dependent launch"


def step_kernels(probe: Tensor, p: int = 0, n: int = 0) -> StepKernels:
    """The kernels of a decoding step on tensors like this one: ours where they can run, else plain PyTorch.

    Where heads of p x n are too large for the scan, a prefix is read without it.
    """
    name = requested()
    refusal = _step_refusal(probe)
    if name == "triton" and refusal is not None:
        raise DeviceError(f"{ENVIRONMENT}={name}, but it {refusal}", hint=f"unset {ENVIRONMENT}")
    if name not in ("auto", "triton") or refusal is not None:
        return StepKernels()
    products, batches, drawing, reading = _step_modules()[0]
    return StepKernels(
        products,
        batches,
        drawing,
        reading if _state_refusal(probe, p, n) is None else None,
        pdl=_pdl_refusal(probe.device) is None,
        large=chips.is_large(probe.device),
    )


def row_step_refusal(probe: Tensor) -> str | None:
    """Why model/row_step.py does not run a merged model's steps on tensors like this one; None where it does."""
    if probe.device.type != "cpu":
        return f"made for the CPU, the tensors are on {probe.device.type}"
    if requested() != "auto":
        return f"{ENVIRONMENT}={requested()}"
    if probe.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"does not know dtype {probe.dtype}"
    return None


def _step_report(probe: Tensor) -> list[KernelChoice]:
    """The operations of a decoding step, see `report`."""
    refusal = _step_refusal(probe)
    used = refusal is None and requested() in ("auto", "triton")
    why = refusal or f"{ENVIRONMENT}={requested()}"
    if used:
        unlinked = _pdl_refusal(probe.device)
        links = f"one after the other ({unlinked})" if unlinked else "each fetches its weights while another runs"
        why = f"three launches a layer in one recorded step, of many rows four, {links}"
    prefill = "four launches a layer beside the products, segments of the scan at the same time"
    rows = []
    for op in ("normed_product", "mixer_step", "draw", "prefill"):
        rows.append(KernelChoice(op, "triton", used, prefill if used and op == "prefill" else why))
        rows.append(KernelChoice(op, "torch", not used, "triton is faster here" if used else "works everywhere"))
    return rows


def report(device: torch.device) -> list[KernelChoice]:
    """Every operation's backends on a device, the chosen one marked, each with its reason."""
    backends = _scan_backends(torch.empty(1, 1, 1, 64, device=device), 128)
    chosen = _pick(backends)
    notes = {
        "triton": "one fused kernel, forward and backward",
        "mamba-ssm": "that package's Triton kernels",
        "torch": "works everywhere",
    }
    rows = []
    for backend, refusal in backends:
        reason = refusal or notes[backend]
        if refusal is None and backend != chosen:
            reason += f"; {ENVIRONMENT}={requested()}" if requested() != "auto" else f"; {chosen} is faster here"
        rows.append(KernelChoice("ssd_scan", backend, backend == chosen, reason))
    probe = torch.empty(0, device=device)
    fused = _fused(probe) is not reference
    for op in ("causal_conv", "rms_norm", "gated_rms_norm", "cross_entropy"):
        why = _triton_refusal(probe) or ("one pass over memory" if fused else f"{ENVIRONMENT}={requested()}")
        rows.append(KernelChoice(op, "triton", fused, why))
        rows.append(KernelChoice(op, "torch", not fused, "triton is faster here" if fused else "works everywhere"))
    with torch.enable_grad():
        why = block_refusal(probe, 64, 128, 4, 8)
    said = "training: one step of autograd of both tasks, norms computed again instead of kept"
    rows.append(KernelChoice("block", "triton", why is None, why or said))
    rows.append(KernelChoice("block", "torch", why is not None, "the operations above one by one"))
    rows.append(KernelChoice("ssd_step", "torch", True, "of steps that are not recorded"))
    return [*rows, *_step_report(probe), *_row_report(probe)]


def _row_report(probe: Tensor) -> list[KernelChoice]:
    """A step on a CPU, and its narrow products, see `report`."""
    if probe.device.type != "cpu":
        return []
    refusal = row_step_refusal(probe)
    no_int8 = packed_int8.refusal()
    why = "prepared tensors, everything written in place; of models merged for a task"
    return [
        KernelChoice("row_step", "cpu", refusal is None, refusal or why),
        KernelChoice("row_step", "torch", refusal is not None, "works everywhere" if refusal else "cpu is faster here"),
        KernelChoice("int8", "fbgemm", no_int8 is None, no_int8 or "for --quantize int8, inputs in 14 bits"),
    ]
