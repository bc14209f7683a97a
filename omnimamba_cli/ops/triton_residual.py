"""The residual around a block as Triton kernels: the sum, and its gradient with that of the norm before the block.

Held to plain PyTorch with the block. Importing needs Triton.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from omnimamba_cli.ops.train_plans import RESIDUAL_GRADIENT, RowPlan
from omnimamba_cli.ops.triton_lora import Dropout, Pairs, kept


@triton.jit
def _add(residual_ptr, branch_ptr, out_ptr, c, C: tl.constexpr):
    row, cs = tl.program_id(0).to(tl.int64), tl.arange(0, C)
    x = tl.load(residual_ptr + row * c + cs, mask=cs < c, other=0.0)
    branch = tl.load(branch_ptr + row * c + cs, mask=cs < c, other=0.0)
    tl.store(out_ptr + row * c + cs, x + branch.to(tl.float32), mask=cs < c)


@triton.jit(do_not_specialize=["seed", "threshold", "rows", "turns", "bound"])
def _residual_backward(residual_ptr, rstd_ptr, w_ptr, dx_ptr, A_ptr, dnew_ptr, dresidual_ptr, narrow_ptr, dw_ptr, seed,
                       threshold, factor, rows, turns, bound, c, sd, RANK: tl.constexpr, DROP: tl.constexpr,
                       C: tl.constexpr):  # fmt: skip
    """The residual's gradient: of the sum, and through the norm what came back of x and of dropout(x) A^T.

    Also in the products' dtype, for the layer before.
    """
    cs = tl.arange(0, C)
    w = tl.load(w_ptr + cs, mask=cs < c, other=0.0).to(tl.float32)
    dw = tl.zeros((C,), tl.float32)
    first = tl.program_id(0).to(tl.int64)
    for turn in range(turns):
        row = first + turn * tl.num_programs(0)
        here = (cs < c) & (row < rows)
        dx = tl.load(dx_ptr + row * sd + cs, mask=here, other=0.0).to(tl.float32)
        if RANK > 0:
            low = tl.zeros((C,), tl.float32)
            # past the last row there may be no second pair to read
            pair = RANK * ((row >= bound) & (row < rows)).to(tl.int32)
            for j in tl.static_range(RANK):
                d = tl.load(dx_ptr + row * sd + c + pair + j, mask=row < rows, other=0.0).to(tl.float32)
                low += d * tl.load(A_ptr + (pair + j) * c + cs, mask=cs < c, other=0.0).to(tl.float32)
            if DROP:
                at = row.to(tl.int32) + tl.zeros((C,), tl.int32)
                low = tl.where(kept(seed, threshold, at, cs, c), low * factor, 0.0)
            dx += low
        x = tl.load(residual_ptr + row * c + cs, mask=here, other=0.0)
        dnew = tl.load(dnew_ptr + row * c + cs, mask=here, other=0.0)
        rstd = tl.load(rstd_ptr + row, mask=row < rows, other=0.0)
        hat = x * rstd
        dw += dx * hat
        dhat = dx * w
        dresidual = dnew + rstd * (dhat - hat * (tl.sum(dhat * hat, 0) / c))
        tl.store(dresidual_ptr + row * c + cs, dresidual, mask=here)
        tl.store(narrow_ptr + row * c + cs, dresidual, mask=here)
    tl.store(dw_ptr + tl.program_id(0) * c + cs, dw, mask=cs < c)


def add(residual: Tensor, branch: Tensor) -> Tensor:
    """residual (t d) float32 + branch (t d) of any dtype, both contiguous, in float32."""
    t, d = residual.shape
    out = torch.empty_like(residual)
    _add[(t,)](residual, branch, out, d, C=triton.next_power_of_2(d), num_warps=4)
    return out


def residual_backward(
    residual: Tensor,
    rstd: Tensor,
    norm: Tensor,
    dx: Tensor,
    A: Tensor | None,
    dnew: Tensor,
    pairs: Pairs,
    dropout: Dropout,
    plan: RowPlan = RESIDUAL_GRADIENT,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the residual (t d) float32, the same in dx's dtype, and of its norm's weight (d) float32."""
    t, d = residual.shape
    programs = min(t, plan.programs)
    dresidual = torch.empty_like(residual)
    narrow = dresidual if dx.dtype == dresidual.dtype else torch.empty(t, d, dtype=dx.dtype, device=residual.device)
    dnorm = torch.empty(programs, d, dtype=torch.float32, device=residual.device)
    _residual_backward[(programs,)](
        residual, rstd, norm, dx, dx if A is None else A, dnew, dresidual, narrow, dnorm,
        dropout.seed, dropout.threshold, dropout.factor, t, triton.cdiv(t, programs), pairs.bound, d,
        dx.stride(0), RANK=pairs.rank, DROP=dropout.probability > 0, C=triton.next_power_of_2(d),
        num_warps=plan.warps, maxnreg=plan.registers,
    )  # fmt: skip
    return dresidual, narrow, dnorm.sum(0)
