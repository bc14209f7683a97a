"""RMS norm, plain and gated, as fused Triton kernels, forward and backward.

Also re-exports convolution and loss: the registry takes either this module or `reference` for all of them. Each kernel
reads its inputs once and writes its outputs once. Held to ops/reference.py by tests/ops.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from omnimamba_cli.ops.train_plans import GATED_NORM_GRADIENT, NORM_GRADIENT, RowPlan
from omnimamba_cli.ops.triton_conv import causal_conv
from omnimamba_cli.ops.triton_loss import summed_cross_entropy
from omnimamba_cli.ops.triton_math import as_rows

__all__ = ["causal_conv", "gated_rms_norm", "norm_backward", "norm_forward", "rms_norm", "summed_cross_entropy"]


@triton.jit
def _norm_forward(x_ptr, z_ptr, w_ptr, out_ptr, rstd_ptr, c, sx, sz, so, eps, gated: tl.constexpr, C: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cs = tl.arange(0, C)
    x = tl.load(x_ptr + row * sx + cs, mask=cs < c, other=0.0).to(tl.float32)
    if gated:
        z = tl.load(z_ptr + row * sz + cs, mask=cs < c, other=0.0).to(tl.float32)
        x = x * z * tl.sigmoid(z)
    rstd = 1 / tl.sqrt(tl.sum(x * x, 0) / c + eps)
    w = tl.load(w_ptr + cs, mask=cs < c, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * so + cs, x * rstd * w, mask=cs < c)
    tl.store(rstd_ptr + row, rstd)


@triton.jit(do_not_specialize=["rows", "turns"])
def _norm_backward(x_ptr, z_ptr, w_ptr, rstd_ptr, dout_ptr, dx_ptr, dz_ptr, out_ptr, dw_ptr, rows, turns, c,
                   sx, sz, sd, sdz, gated: tl.constexpr, again: tl.constexpr, C: tl.constexpr):  # fmt: skip
    """Each program takes every num_programs-th row and keeps the weight's sum; `again` writes the output, too."""
    cs = tl.arange(0, C)
    w = tl.load(w_ptr + cs, mask=cs < c, other=0.0).to(tl.float32)
    dw = tl.zeros((C,), tl.float32)
    first = tl.program_id(0).to(tl.int64)
    for turn in range(turns):
        row = first + turn * tl.num_programs(0)
        here = (cs < c) & (row < rows)
        x = tl.load(x_ptr + row * sx + cs, mask=here, other=0.0).to(tl.float32)
        dout = tl.load(dout_ptr + row * sd + cs, mask=here, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + row, mask=row < rows, other=0.0)
        if gated:
            z = tl.load(z_ptr + row * sz + cs, mask=here, other=0.0).to(tl.float32)
            open_ = tl.sigmoid(z)
            g = x * z * open_
        else:
            g = x
        hat = g * rstd
        dw += dout * hat
        if again:
            tl.store(out_ptr + row * c + cs, hat * w, mask=here)
        dhat = dout * w
        dg = rstd * (dhat - hat * (tl.sum(dhat * hat, 0) / c))
        if gated:
            tl.store(dx_ptr + row * c + cs, dg * z * open_, mask=here)
            tl.store(dz_ptr + row * sdz + cs, dg * x * open_ * (1 + z * (1 - open_)), mask=here)
        else:
            tl.store(dx_ptr + row * c + cs, dg, mask=here)
    tl.store(dw_ptr + tl.program_id(0) * c + cs, dw, mask=cs < c)


def norm_forward(x: Tensor, z: Tensor | None, weight: Tensor, eps: float, out: Tensor) -> Tensor:
    """Writes the norm of x (rows c), times silu(z) before it where there is a gate, into out; returns 1 / rms."""
    rows, c = x.shape
    rstd = torch.empty(rows, dtype=torch.float32, device=x.device)
    gate = x if z is None else z
    _norm_forward[(rows,)](
        x, gate, weight, out, rstd, c, x.stride(0), gate.stride(0), out.stride(0), eps,
        gated=z is not None, C=triton.next_power_of_2(c),
    )  # fmt: skip
    return rstd


def norm_backward(
    x: Tensor,
    z: Tensor | None,
    weight: Tensor,
    rstd: Tensor,
    dout: Tensor,
    dx: Tensor,
    dz: Tensor | None,
    out: Tensor | None = None,
    plan: RowPlan | None = None,
) -> Tensor:
    """Writes the gradients of x and z (rows c), and into `out` what the forward pass gave; returns the weight's."""
    rows, c = x.shape
    plan = plan or (NORM_GRADIENT if z is None else GATED_NORM_GRADIENT)
    gate, unused = x if z is None else z, dx
    programs = min(rows, plan.programs)
    dw = torch.empty(programs, c, dtype=torch.float32, device=x.device)
    _norm_backward[(programs,)](
        x, gate, weight, rstd, dout, dx, unused if dz is None else dz, unused if out is None else out, dw,
        rows, triton.cdiv(rows, programs), c, x.stride(0), gate.stride(0), dout.stride(0),
        c if dz is None else dz.stride(0), gated=z is not None, again=out is not None, C=triton.next_power_of_2(c),
        num_warps=plan.warps, maxnreg=plan.registers,
    )  # fmt: skip
    return dw.sum(0)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, z, weight, eps, dtype):  # type: ignore[no-untyped-def]
        out = torch.empty(x.shape, dtype=dtype, device=x.device)
        rstd = norm_forward(x, z, weight, eps, out)
        ctx.save_for_backward(x, z, weight, rstd)
        return out

    @staticmethod
    def backward(ctx, dout):  # type: ignore[no-untyped-def]
        x, z, weight, rstd = ctx.saved_tensors
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        dz = None if z is None else torch.empty(z.shape, dtype=z.dtype, device=x.device)
        dw = norm_backward(x, z, weight, rstd, dout if dout.stride(-1) == 1 else dout.contiguous(), dx, dz)
        return dx, dz, dw.to(weight.dtype), None, None


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None = None) -> Tensor:
    """Same contract as reference.rms_norm."""
    out = _Norm.apply(as_rows(x), None, weight, eps, dtype or torch.float32)
    return out.view(x.shape)


def gated_rms_norm(y: Tensor, z: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Same contract as reference.gated_rms_norm."""
    return _Norm.apply(as_rows(y), as_rows(z), weight, eps, y.dtype).view(y.shape)
