"""The causal convolution and SiLU as fused Triton kernels, forward and backward, of packed sequences.

Each reads its inputs once and writes its outputs once. Held to ops/reference.py by tests/ops.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from omnimamba_cli.ops.packing import Packing
from omnimamba_cli.ops.train_plans import CONV, CONV_GRADIENT, TilePlan, WalkPlan
from omnimamba_cli.ops.triton_math import as_rows, piece_at


@triton.jit
def _tap(x_ptr, history_ptr, rows, cs, l, c, sx, k: tl.constexpr, has_history: tl.constexpr):
    """Inputs at times `rows` (ROWS COLUMNS) in float32; before time 0 they come from the history, or are zero."""
    here = (cs < c)[None]
    x = tl.load(x_ptr + rows[:, None] * sx + cs[None], mask=((rows >= 0) & (rows < l))[:, None] & here, other=0.0)
    x = x.to(tl.float32)
    if has_history:
        old = ((rows < 0) & (rows > -k))[:, None] & here
        x += tl.load(history_ptr + (rows + k - 1)[:, None] * c + cs[None], mask=old, other=0.0).to(tl.float32)
    return x


@triton.jit(do_not_specialize=["b", "l", "more_l"])  # lengths vary from batch to batch
def _conv_forward(x_ptr, w_ptr, bias_ptr, history_ptr, y_ptr, b, l, more_l, c, sx, has_history: tl.constexpr,
                  k: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    sequence, row, l, piece = piece_at(tl.program_id(0), b, l, more_l, ROWS)
    cs = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    rows = piece * ROWS + tl.arange(0, ROWS)
    x_ptr += row * sx
    history_ptr += sequence * (k - 1) * c
    y = tl.zeros((ROWS, COLUMNS), tl.float32) + tl.load(bias_ptr + cs, mask=cs < c, other=0.0).to(tl.float32)[None]
    for i in tl.static_range(k):
        w = tl.load(w_ptr + i * c + cs, mask=cs < c, other=0.0).to(tl.float32)
        y += _tap(x_ptr, history_ptr, rows - (k - 1) + i, cs, l, c, sx, k, has_history) * w[None]
    y = y * tl.sigmoid(y)
    tl.store(y_ptr + (row + rows)[:, None] * c + cs[None], y, mask=(rows < l)[:, None] & (cs < c)[None])


@triton.jit
def _weights(w_ptr, cs, c, tap: tl.constexpr):
    """Tap `tap` of the channels; zeros before the first one, so that any convolution of at most four taps has four."""
    w = tl.zeros((cs.shape[0],), tl.float32)
    if tap >= 0:
        w = tl.load(w_ptr + tap * c + cs, mask=cs < c, other=0.0).to(tl.float32)
    return w


@triton.jit
def _at(x_ptr, history_ptr, t, cs, l, c, sx, k: tl.constexpr, has_history: tl.constexpr):
    """The inputs of one time in float32, see _tap."""
    x = tl.load(x_ptr + t * sx + cs, mask=(t >= 0) & (t < l) & (cs < c), other=0.0).to(tl.float32)
    if has_history:
        old = (t < 0) & (t > -k) & (cs < c)
        x += tl.load(history_ptr + (t + k - 1) * c + cs, mask=old, other=0.0).to(tl.float32)
    return x


@triton.jit
def _before_silu(dy_ptr, t, cs, l, c, sy, pre):
    """The gradient before SiLU at one time."""
    dy = tl.load(dy_ptr + t * sy + cs, mask=(t >= 0) & (t < l) & (cs < c), other=0.0).to(tl.float32)
    gate = tl.sigmoid(pre)
    return dy * gate * (1 + pre * (1 - gate))


@triton.jit
def _store_gradient(dx_ptr, dhistory_ptr, t, cs, l, c, sd, dx, own, k: tl.constexpr, has_history: tl.constexpr):
    tl.store(dx_ptr + t * sd + cs, dx, mask=own & (t >= 0) & (t < l) & (cs < c))
    if has_history:
        tl.store(dhistory_ptr + (t + k - 1) * c + cs, dx, mask=own & (t < 0) & (t > -k) & (cs < c))


@triton.jit(do_not_specialize=["b", "l", "more_l", "turns"])
def _conv_backward(x_ptr, w_ptr, bias_ptr, history_ptr, dy_ptr, dx_ptr, dhistory_ptr, dw_ptr, dbias_ptr, b, l, more_l,
                   c, turns, sx, sy, sd, has_history: tl.constexpr, k: tl.constexpr,
                   COLUMNS: tl.constexpr):  # fmt: skip
    """dx(t) = sum over taps of w dpre(t + k - 1 - tap), dpre the gradient before SiLU, never stored.

    A program walks back over 4 * turns times of some channels, four times a turn, after one turn over the four times
    behind them, of which it needs dpre alone. With a history the first four times lie before time 0.
    """
    size = turns * 4
    if has_history:
        # a walk over the four times before time 0, too
        sequence, row, walked, piece = piece_at(tl.program_id(0), b, l + 4, more_l + 4, size)
        l = walked - 4
        row -= sequence * 4
    else:
        sequence, row, l, piece = piece_at(tl.program_id(0), b, l, more_l, size)
    cs = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    x_ptr += row * sx
    dy_ptr += row * sy
    dx_ptr += row * sd
    history_ptr += sequence * (k - 1) * c
    dhistory_ptr += sequence * (k - 1) * c
    bias = tl.load(bias_ptr + cs, mask=cs < c, other=0.0).to(tl.float32)
    w0, w1 = _weights(w_ptr, cs, c, k - 4), _weights(w_ptr, cs, c, k - 3)
    w2, w3 = _weights(w_ptr, cs, c, k - 2), _weights(w_ptr, cs, c, k - 1)
    dw0, dw1, dw2, dw3 = bias * 0, bias * 0, bias * 0, bias * 0
    db, d1, d2, d3 = bias * 0, bias * 0, bias * 0, bias * 0  # sums; dpre of the next three times
    t = (piece + 1) * size + 3
    if has_history:
        t -= 4
    x0 = _at(x_ptr, history_ptr, t, cs, l, c, sx, k, has_history)
    x1 = _at(x_ptr, history_ptr, t - 1, cs, l, c, sx, k, has_history)
    x2 = _at(x_ptr, history_ptr, t - 2, cs, l, c, sx, k, has_history)
    for turn in range(turns + 1):
        x3 = _at(x_ptr, history_ptr, t - 3, cs, l, c, sx, k, has_history)
        x4 = _at(x_ptr, history_ptr, t - 4, cs, l, c, sx, k, has_history)
        x5 = _at(x_ptr, history_ptr, t - 5, cs, l, c, sx, k, has_history)
        x6 = _at(x_ptr, history_ptr, t - 6, cs, l, c, sx, k, has_history)
        p0 = _before_silu(dy_ptr, t, cs, l, c, sy, bias + w0 * x3 + w1 * x2 + w2 * x1 + w3 * x0)
        p1 = _before_silu(dy_ptr, t - 1, cs, l, c, sy, bias + w0 * x4 + w1 * x3 + w2 * x2 + w3 * x1)
        p2 = _before_silu(dy_ptr, t - 2, cs, l, c, sy, bias + w0 * x5 + w1 * x4 + w2 * x3 + w3 * x2)
        p3 = _before_silu(dy_ptr, t - 3, cs, l, c, sy, bias + w0 * x6 + w1 * x5 + w2 * x4 + w3 * x3)
        own = turn > 0
        dx = w3 * p0 + w2 * d1 + w1 * d2 + w0 * d3
        _store_gradient(dx_ptr, dhistory_ptr, t, cs, l, c, sd, dx, own, k, has_history)
        dx = w3 * p1 + w2 * p0 + w1 * d1 + w0 * d2
        _store_gradient(dx_ptr, dhistory_ptr, t - 1, cs, l, c, sd, dx, own, k, has_history)
        dx = w3 * p2 + w2 * p1 + w1 * p0 + w0 * d1
        _store_gradient(dx_ptr, dhistory_ptr, t - 2, cs, l, c, sd, dx, own, k, has_history)
        dx = w3 * p3 + w2 * p2 + w1 * p1 + w0 * p0
        _store_gradient(dx_ptr, dhistory_ptr, t - 3, cs, l, c, sd, dx, own, k, has_history)
        if own:
            dw0 += p0 * x3 + p1 * x4 + p2 * x5 + p3 * x6
            dw1 += p0 * x2 + p1 * x3 + p2 * x4 + p3 * x5
            dw2 += p0 * x1 + p1 * x2 + p2 * x3 + p3 * x4
            dw3 += p0 * x0 + p1 * x1 + p2 * x2 + p3 * x3
            db += p0 + p1 + p2 + p3
        d1, d2, d3 = p3, p2, p1
        x0, x1, x2 = x4, x5, x6
        t -= 4
    part = tl.program_id(0).to(tl.int64)
    dw_ptr += part * k * c + cs
    tl.store(dw_ptr + (k - 1) * c, dw3, mask=cs < c)
    if k > 1:
        tl.store(dw_ptr + (k - 2) * c, dw2, mask=cs < c)
    if k > 2:
        tl.store(dw_ptr + (k - 3) * c, dw1, mask=cs < c)
    if k > 3:
        tl.store(dw_ptr, dw0, mask=cs < c)
    tl.store(dbias_ptr + part * c + cs, db, mask=cs < c)


def conv_forward(
    x: Tensor, weight: Tensor, bias: Tensor, packing: Packing, history: Tensor | None = None, plan: TilePlan = CONV
) -> Tensor:
    """The convolution of packed rows x (t c) with weight (c k), and SiLU.

    x's innermost stride is 1; history (b k-1 c), of all sequences, is contiguous.
    """
    t, c = x.shape
    taps = weight.t().contiguous()  # neighbouring channels are read together
    y = torch.empty(t, c, dtype=x.dtype, device=x.device)
    _conv_forward[(packing.pieces(plan.rows), triton.cdiv(c, plan.columns))](
        x, taps, bias, x if history is None else history, y, *packing.lengths, c, x.stride(0),
        has_history=history is not None, k=weight.shape[1], ROWS=plan.rows, COLUMNS=plan.columns, num_warps=plan.warps,
    )  # fmt: skip
    return y


def conv_backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    packing: Packing,
    history: Tensor | None,
    dy: Tensor,
    dx: Tensor,
    dhistory: Tensor | None,
    plan: WalkPlan = CONV_GRADIENT,
) -> tuple[Tensor, Tensor]:
    """Writes x's gradient into dx (t c) and the history's into dhistory; returns weight's and bias's in float32."""
    c, k = weight.shape
    taps = weight.t().contiguous()
    carried = history is not None
    walked = packing
    if carried:
        walked = Packing(packing.b, packing.l + 4, packing.more, packing.more_l + 4)
    turns = min(plan.turns, triton.cdiv(walked.longest, 4))
    programs = walked.pieces(4 * turns)
    dw = torch.empty(programs, k, c, dtype=torch.float32, device=x.device)
    dbias = torch.empty(programs, c, dtype=torch.float32, device=x.device)
    _conv_backward[(programs, triton.cdiv(c, plan.columns))](
        x, taps, bias, history if carried else x, dy, dx, dhistory if carried else dx, dw, dbias, *packing.lengths, c,
        turns, x.stride(0), dy.stride(0), dx.stride(0), has_history=carried, k=k, COLUMNS=plan.columns,
        num_warps=plan.warps,
    )  # fmt: skip
    return dw.sum(0).t(), dbias.sum(0)


class _Conv(torch.autograd.Function):
    """The convolution of packed rows, with its gradient."""

    @staticmethod
    def forward(ctx, x, weight, bias, history, packing):  # type: ignore[no-untyped-def]  # torch's own signature
        ctx.save_for_backward(x, weight, bias, history)
        ctx.packing = packing
        return conv_forward(x, weight, bias, packing, history)

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        x, weight, bias, history = ctx.saved_tensors
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        dhistory = None if history is None else torch.empty_like(history)
        dy = dy if dy.stride(-1) == 1 else dy.contiguous()
        dw, dbias = conv_backward(x, weight, bias, ctx.packing, history, dy, dx, dhistory)
        return dx, dw.to(weight.dtype), dbias.to(bias.dtype), dhistory, None


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor, history: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Same contract as reference.causal_conv; k is at most 4."""
    b, l, c = x.shape
    k = weight.shape[1]
    old = None if history is None else history.to(x.dtype).contiguous()
    y = _Conv.apply(as_rows(x), weight, bias, old, Packing(b, l)).view(b, l, c)
    if l >= k - 1:
        return y, x[:, l - (k - 1) :]
    before = x.new_zeros(b, k - 1, c) if old is None else old
    return y, torch.cat([before, x], dim=1)[:, l:]
