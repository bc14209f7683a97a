"""Cross-entropy of logits in their own dtype as Triton kernels: no copy of them in float32, nor of their logarithms.

Sums are kept in float32, and so is each gradient until it is rounded once to the logits' dtype. Held to
ops/reference.py by tests/ops.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 2048  # of one turn, or of one program


@triton.jit
def _forward(logits_ptr, targets_ptr, loss_ptr, lse_ptr, v, ignored, COLUMNS: tl.constexpr):
    """A row's log-sum-exp, and from it the loss: 0 where the target is the ignored one."""
    row, cs = tl.program_id(0).to(tl.int64), tl.arange(0, COLUMNS)
    # as low as a logit can be, but finite: a column past the end adds nothing
    top, total = tl.full((COLUMNS,), -3e38, tl.float32), tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, v, COLUMNS):
        x = tl.load(logits_ptr + row * v + start + cs, mask=start + cs < v, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(top, x)
        total = total * tl.exp(top - higher) + tl.exp(x - higher)
        top = higher
    highest = tl.max(top, 0)
    lse = highest + tl.log(tl.sum(total * tl.exp(top - highest), 0))
    target = tl.load(targets_ptr + row)
    hit = tl.load(logits_ptr + row * v + target, mask=target != ignored, other=0.0).to(tl.float32)
    tl.store(lse_ptr + row, lse)
    tl.store(loss_ptr + row, tl.where(target != ignored, lse - hit, 0.0))


@triton.jit
def _backward(logits_ptr, targets_ptr, lse_ptr, dloss_ptr, dlogits_ptr, v, ignored, COLUMNS: tl.constexpr):
    row, cs = tl.program_id(0).to(tl.int64), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    target = tl.load(targets_ptr + row)
    weight = tl.where(target != ignored, tl.load(dloss_ptr).to(tl.float32), 0.0)
    x = tl.load(logits_ptr + row * v + cs, mask=cs < v, other=float("-inf")).to(tl.float32)
    share = tl.exp(x - tl.load(lse_ptr + row)) - (cs == target).to(tl.float32)
    tl.store(dlogits_ptr + row * v + cs, share * weight, mask=cs < v)


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, targets, ignored):  # type: ignore[no-untyped-def]  # torch's own signature
        m, v = logits.shape
        loss, lse = torch.empty(2, m, dtype=torch.float32, device=logits.device)
        _forward[(m,)](logits, targets, loss, lse, v, ignored, COLUMNS=COLUMNS, num_warps=8)
        ctx.save_for_backward(logits, targets, lse)
        ctx.ignored = ignored
        return loss.sum()

    @staticmethod
    def backward(ctx, dloss):  # type: ignore[no-untyped-def]
        logits, targets, lse = ctx.saved_tensors
        m, v = logits.shape
        dlogits = torch.empty_like(logits)
        _backward[(m, triton.cdiv(v, COLUMNS))](
            logits, targets, lse, dloss, dlogits, v, ctx.ignored, COLUMNS=COLUMNS, num_warps=4
        )
        return dlogits, None, None


def summed_cross_entropy(logits: Tensor, targets: Tensor, ignored: int) -> Tensor:
    """Same contract as reference.summed_cross_entropy."""
    loss: Tensor = _Loss.apply(logits.contiguous(), targets.contiguous(), ignored)
    return loss
