"""What stands around the scan as fused Triton kernels, forward and backward: causal convolution, (gated) RMS norm.

Each reads its inputs once and writes its outputs once. Held to ops/reference.py by tests/ops.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from omnimamba_cli.ops.train_plans import (
    CONV,
    CONV_GRADIENT,
    GATED_NORM_GRADIENT,
    NORM_GRADIENT,
    RowPlan,
    TilePlan,
    WalkPlan,
)


@triton.jit
def _tap(x_ptr, history_ptr, rows, cs, l, c, sxl, k: tl.constexpr, has_history: tl.constexpr):
    """Inputs at times `rows` (ROWS COLUMNS) in float32; before time 0 they come from the history, or are zero."""
    here = (cs < c)[None]
    x = tl.load(x_ptr + rows[:, None] * sxl + cs[None], mask=((rows >= 0) & (rows < l))[:, None] & here, other=0.0)
    x = x.to(tl.float32)
    if has_history:
        old = ((rows < 0) & (rows > -k))[:, None] & here
        x += tl.load(history_ptr + (rows + k - 1)[:, None] * c + cs[None], mask=old, other=0.0).to(tl.float32)
    return x


@triton.jit(do_not_specialize=["l"])  # lengths vary from batch to batch
def _conv_forward(x_ptr, w_ptr, bias_ptr, history_ptr, y_ptr, l, c, sxb, sxl, has_history: tl.constexpr,
                  k: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    cs = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    rows = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    x_ptr += row * sxb
    history_ptr += row * (k - 1) * c
    y = tl.zeros((ROWS, COLUMNS), tl.float32) + tl.load(bias_ptr + cs, mask=cs < c, other=0.0).to(tl.float32)[None]
    for i in tl.static_range(k):
        w = tl.load(w_ptr + i * c + cs, mask=cs < c, other=0.0).to(tl.float32)
        y += _tap(x_ptr, history_ptr, rows - (k - 1) + i, cs, l, c, sxl, k, has_history) * w[None]
    y = y * tl.sigmoid(y)
    tl.store(y_ptr + (row * l + rows)[:, None] * c + cs[None], y, mask=(rows < l)[:, None] & (cs < c)[None])


@triton.jit
def _weights(w_ptr, cs, c, tap: tl.constexpr):
    """Tap `tap` of the channels; zeros before the first one, so that any convolution of at most four taps has four."""
    w = tl.zeros((cs.shape[0],), tl.float32)
    if tap >= 0:
        w = tl.load(w_ptr + tap * c + cs, mask=cs < c, other=0.0).to(tl.float32)
    return w


@triton.jit
def _at(x_ptr, history_ptr, t, cs, l, c, sxl, k: tl.constexpr, has_history: tl.constexpr):
    """The inputs of one time in float32, see _tap."""
    x = tl.load(x_ptr + t * sxl + cs, mask=(t >= 0) & (t < l) & (cs < c), other=0.0).to(tl.float32)
    if has_history:
        old = (t < 0) & (t > -k) & (cs < c)
        x += tl.load(history_ptr + (t + k - 1) * c + cs, mask=old, other=0.0).to(tl.float32)
    return x


@triton.jit
def _before_silu(dy_ptr, t, cs, l, c, syl, pre):
    """The gradient before SiLU at one time."""
    dy = tl.load(dy_ptr + t * syl + cs, mask=(t >= 0) & (t < l) & (cs < c), other=0.0).to(tl.float32)
    gate = tl.sigmoid(pre)
    return dy * gate * (1 + pre * (1 - gate))


@triton.jit
def _store_gradient(dx_ptr, dhistory_ptr, t, cs, l, c, sdl, dx, own, k: tl.constexpr, has_history: tl.constexpr):
    tl.store(dx_ptr + t * sdl + cs, dx, mask=own & (t >= 0) & (t < l) & (cs < c))
    if has_history:
        tl.store(dhistory_ptr + (t + k - 1) * c + cs, dx, mask=own & (t < 0) & (t > -k) & (cs < c))


@triton.jit(do_not_specialize=["l", "turns"])
def _conv_backward(x_ptr, w_ptr, bias_ptr, history_ptr, dy_ptr, dx_ptr, dhistory_ptr, dw_ptr, dbias_ptr, l, c,
                   turns, sxb, sxl, syb, syl, sdb, sdl, has_history: tl.constexpr, k: tl.constexpr,
                   COLUMNS: tl.constexpr):  # fmt: skip
    """dx(t) = sum over taps of w dpre(t + k - 1 - tap), dpre the gradient before SiLU, never stored.

    A program walks back over 4 * turns times of some channels, four times a turn, after one turn over the four times
    behind them, of which it needs dpre alone. With a history the first four times lie before time 0.
    """
    row = tl.program_id(0).to(tl.int64)
    cs = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    x_ptr += row * sxb
    dy_ptr += row * syb
    dx_ptr += row * sdb
    history_ptr += row * (k - 1) * c
    dhistory_ptr += row * (k - 1) * c
    b = tl.load(bias_ptr + cs, mask=cs < c, other=0.0).to(tl.float32)
    w0, w1 = _weights(w_ptr, cs, c, k - 4), _weights(w_ptr, cs, c, k - 3)
    w2, w3 = _weights(w_ptr, cs, c, k - 2), _weights(w_ptr, cs, c, k - 1)
    dw0, dw1, dw2, dw3 = b * 0, b * 0, b * 0, b * 0
    db, d1, d2, d3 = b * 0, b * 0, b * 0, b * 0  # sums; dpre of the next three times
    t = (tl.program_id(2) + 1) * turns * 4 + 3
    if has_history:
        t -= 4
    x0 = _at(x_ptr, history_ptr, t, cs, l, c, sxl, k, has_history)
    x1 = _at(x_ptr, history_ptr, t - 1, cs, l, c, sxl, k, has_history)
    x2 = _at(x_ptr, history_ptr, t - 2, cs, l, c, sxl, k, has_history)
    for turn in range(turns + 1):
        x3 = _at(x_ptr, history_ptr, t - 3, cs, l, c, sxl, k, has_history)
        x4 = _at(x_ptr, history_ptr, t - 4, cs, l, c, sxl, k, has_history)
        x5 = _at(x_ptr, history_ptr, t - 5, cs, l, c, sxl, k, has_history)
        x6 = _at(x_ptr, history_ptr, t - 6, cs, l, c, sxl, k, has_history)
        p0 = _before_silu(dy_ptr, t, cs, l, c, syl, b + w0 * x3 + w1 * x2 + w2 * x1 + w3 * x0)
        p1 = _before_silu(dy_ptr, t - 1, cs, l, c, syl, b + w0 * x4 + w1 * x3 + w2 * x2 + w3 * x1)
        p2 = _before_silu(dy_ptr, t - 2, cs, l, c, syl, b + w0 * x5 + w1 * x4 + w2 * x3 + w3 * x2)
        p3 = _before_silu(dy_ptr, t - 3, cs, l, c, syl, b + w0 * x6 + w1 * x5 + w2 * x4 + w3 * x3)
        own = turn > 0
        dx = w3 * p0 + w2 * d1 + w1 * d2 + w0 * d3
        _store_gradient(dx_ptr, dhistory_ptr, t, cs, l, c, sdl, dx, own, k, has_history)
        dx = w3 * p1 + w2 * p0 + w1 * d1 + w0 * d2
        _store_gradient(dx_ptr, dhistory_ptr, t - 1, cs, l, c, sdl, dx, own, k, has_history)
        dx = w3 * p2 + w2 * p1 + w1 * p0 + w0 * d1
        _store_gradient(dx_ptr, dhistory_ptr, t - 2, cs, l, c, sdl, dx, own, k, has_history)
        dx = w3 * p3 + w2 * p2 + w1 * p1 + w0 * p0
        _store_gradient(dx_ptr, dhistory_ptr, t - 3, cs, l, c, sdl, dx, own, k, has_history)
        if own:
            dw0 += p0 * x3 + p1 * x4 + p2 * x5 + p3 * x6
            dw1 += p0 * x2 + p1 * x3 + p2 * x4 + p3 * x5
            dw2 += p0 * x1 + p1 * x2 + p2 * x3 + p3 * x4
            dw3 += p0 * x0 + p1 * x1 + p2 * x2 + p3 * x3
            db += p0 + p1 + p2 + p3
        d1, d2, d3 = p3, p2, p1
        x0, x1, x2 = x4, x5, x6
        t -= 4
    part = row * tl.num_programs(2) + tl.program_id(2)
    dw_ptr += part * k * c + cs
    tl.store(dw_ptr + (k - 1) * c, dw3, mask=cs < c)
    if k > 1:
        tl.store(dw_ptr + (k - 2) * c, dw2, mask=cs < c)
    if k > 2:
        tl.store(dw_ptr + (k - 3) * c, dw1, mask=cs < c)
    if k > 3:
        tl.store(dw_ptr, dw0, mask=cs < c)
    tl.store(dbias_ptr + part * c + cs, db, mask=cs < c)


def conv_forward(x: Tensor, weight: Tensor, bias: Tensor, history: Tensor | None, plan: TilePlan = CONV) -> Tensor:
    """The convolution of x (b l c) with weight (c k), and SiLU; innermost stride 1, history (b k-1 c) contiguous."""
    b, l, c = x.shape
    taps = weight.t().contiguous()  # neighbouring channels are read together
    y = torch.empty(b, l, c, dtype=x.dtype, device=x.device)
    _conv_forward[(b, triton.cdiv(c, plan.columns), triton.cdiv(l, plan.rows))](
        x, taps, bias, x if history is None else history, y, l, c, x.stride(0), x.stride(1),
        has_history=history is not None, k=weight.shape[1], ROWS=plan.rows, COLUMNS=plan.columns, num_warps=plan.warps,
    )  # fmt: skip
    return y


def conv_backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    history: Tensor | None,
    dy: Tensor,
    dx: Tensor,
    dhistory: Tensor | None,
    plan: WalkPlan = CONV_GRADIENT,
) -> tuple[Tensor, Tensor]:
    """Writes x's gradient into dx (b l c) and the history's into dhistory; returns weight's and bias's in float32."""
    b, l, c = x.shape
    k = weight.shape[1]
    taps = weight.t().contiguous()
    carried = history is not None
    fours = triton.cdiv(l, 4) + carried
    turns = min(plan.turns, fours)
    programs = triton.cdiv(fours, turns)
    dw = torch.empty(b * programs, k, c, dtype=torch.float32, device=x.device)
    dbias = torch.empty(b * programs, c, dtype=torch.float32, device=x.device)
    _conv_backward[(b, triton.cdiv(c, plan.columns), programs)](
        x, taps, bias, history if carried else x, dy, dx, dhistory if carried else dx, dw, dbias, l, c, turns,
        x.stride(0), x.stride(1), dy.stride(0), dy.stride(1), dx.stride(0), dx.stride(1), has_history=carried, k=k,
        COLUMNS=plan.columns, num_warps=plan.warps,
    )  # fmt: skip
    return dw.sum(0).t(), dbias.sum(0)


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, history):  # type: ignore[no-untyped-def]  # torch's own signature
        ctx.save_for_backward(x, weight, bias, history)
        return conv_forward(x, weight, bias, history)

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        x, weight, bias, history = ctx.saved_tensors
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        dhistory = None if history is None else torch.empty_like(history)
        dy = dy if dy.stride(-1) == 1 else dy.contiguous()
        dw, dbias = conv_backward(x, weight, bias, history, dy, dx, dhistory)
        return dx, dw.to(weight.dtype), dbias.to(bias.dtype), dhistory


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor, history: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Same contract as reference.causal_conv; k is at most 4."""
    b, l, c = x.shape
    k = weight.shape[1]
    x = x if x.stride(-1) == 1 else x.contiguous()
    old = None if history is None else history.to(x.dtype).contiguous()
    y = _Conv.apply(x, weight, bias, old)
    if l >= k - 1:
        return y, x[:, l - (k - 1) :]
    before = x.new_zeros(b, k - 1, c) if old is None else old
    return y, torch.cat([before, x], dim=1)[:, l:]


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


def _as_rows(x: Tensor) -> Tensor:
    """(... c) as (rows c) without a copy where the rows are evenly spaced."""
    try:
        flat = x.view(-1, x.shape[-1])
    except RuntimeError:
        flat = x.reshape(-1, x.shape[-1])
    return flat if flat.stride(-1) == 1 else flat.contiguous()


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None = None) -> Tensor:
    """Same contract as reference.rms_norm."""
    out = _Norm.apply(_as_rows(x), None, weight, eps, dtype or torch.float32)
    return out.view(x.shape)


def gated_rms_norm(y: Tensor, z: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Same contract as reference.gated_rms_norm."""
    return _Norm.apply(_as_rows(y), _as_rows(z), weight, eps, y.dtype).view(y.shape)
