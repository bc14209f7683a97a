"""A whole residual block for training as one step of autograd: the products by the library, the rest by our kernels.

residual + out_proj(gated norm(scan(convolution(in_proj(norm(residual)))))), with LoRA's pair beside in_proj. Kept for
the backward pass are the residual, its norm, the outputs of in_proj, convolution and scan, and the step sizes: 46 KB a
token and layer at 1.3B in 16 bits. The gated norm is computed again by its gradient's kernel. LoRA is part of the
product: in_proj multiplies [x, dropout(x) A^T] with [W, scale B]. Sequences of both tasks go through together, see
ops/packing.py. Held to the block's plain form by tests/ops. Importing needs Triton.
"""

from dataclasses import dataclass, field

import torch
import triton
import triton.language as tl
from torch import Tensor

from omnimamba_cli.ops.packing import Packing
from omnimamba_cli.ops.train_plans import STEP_SIZE
from omnimamba_cli.ops.triton_conv import conv_backward, conv_forward
from omnimamba_cli.ops.triton_fused import norm_backward, norm_forward
from omnimamba_cli.ops.triton_lora import Dropout, Pairs, joined, narrow, narrow_gradient, padded_rank, parted
from omnimamba_cli.ops.triton_math import softplus
from omnimamba_cli.ops.triton_residual import add, residual_backward
from omnimamba_cli.ops.triton_scan import scan_forward
from omnimamba_cli.ops.triton_scan_backward import scan_backward


@dataclass(frozen=True)
class BlockSettings:
    """What a block needs besides its tensors."""

    groups: int
    d_state: int
    eps: float
    dtype: torch.dtype  # of the products
    packing: Packing  # of the rows
    pairs: Pairs = field(default_factory=lambda: Pairs(0, 0))  # of LoRA
    scale: float = 0.0  # of LoRA's pairs
    dropout: Dropout = field(default_factory=Dropout)


@triton.jit(do_not_specialize=["count"])
def _step_sizes(raw_ptr, bias_ptr, dt_ptr, count, h, sr, ROWS: tl.constexpr, H: tl.constexpr):
    """dt = softplus(raw + bias)."""
    rows, hs = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, H)
    inside = (rows < count)[:, None] & (hs < h)[None]
    raw = tl.load(raw_ptr + rows[:, None].to(tl.int64) * sr + hs[None], mask=inside, other=0.0).to(tl.float32)
    raw += tl.load(bias_ptr + hs, mask=hs < h, other=0.0).to(tl.float32)[None]
    tl.store(dt_ptr + rows[:, None] * h + hs[None], softplus(raw), mask=inside)


@triton.jit(do_not_specialize=["count"])
def _step_sizes_backward(raw_ptr, bias_ptr, ddt_ptr, draw_ptr, dbias_ptr, count, h, width, sr, sd,
                         ROWS: tl.constexpr, H: tl.constexpr):  # fmt: skip
    """The gradient of raw, zeros in the columns that pad it up to `width`, and the bias's sum over these rows."""
    rows, hs = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, H)
    inside = (rows < count)[:, None] & (hs < h)[None]
    raw = tl.load(raw_ptr + rows[:, None].to(tl.int64) * sr + hs[None], mask=inside, other=0.0).to(tl.float32)
    raw += tl.load(bias_ptr + hs, mask=hs < h, other=0.0).to(tl.float32)[None]
    ddt = tl.load(ddt_ptr + rows[:, None] * h + hs[None], mask=inside, other=0.0)
    draw = tl.where(raw > 20, ddt, ddt * tl.sigmoid(raw))
    place = draw_ptr + rows[:, None].to(tl.int64) * sd + hs[None]
    tl.store(place, draw, mask=(rows < count)[:, None] & (hs < width)[None])
    tl.store(dbias_ptr + tl.program_id(0) * h + hs, tl.sum(draw, 0), mask=hs < h)


def _cut(zxBCdt: Tensor, e: int, c: int) -> tuple[Tensor, Tensor, Tensor]:
    """in_proj's rows (t w): z (t e), what the convolution reads (t c), and dt with padding (t w-e-c)."""
    return zxBCdt[:, :e], zxBCdt[:, e : e + c], zxBCdt[:, e + c :]


def _scan_inputs(xBC: Tensor, e: int, h: int, settings: BlockSettings) -> tuple[Tensor, Tensor, Tensor]:
    """x (t h p), B and C (t g n) of xBC (t c)."""
    g, n = settings.groups, settings.d_state
    x, B, C = xBC.split([e, g * n, g * n], dim=-1)
    return x.unflatten(-1, (h, e // h)), B.unflatten(-1, (g, n)), C.unflatten(-1, (g, n))


class _Block(torch.autograd.Function):
    """Tensors in the order of `block`."""

    @staticmethod
    def forward(ctx, residual, norm, weight, A, B, conv, conv_bias, dt_bias, A_log, D, gate, out_weight, settings):  # type: ignore[no-untyped-def]  # torch's own signature
        t, d = residual.shape
        e, c, h = len(gate), len(conv), len(dt_bias)
        residual = residual.contiguous()
        rank = 0 if A is None else len(A)
        dtype, device = settings.dtype, residual.device
        x = torch.empty(t, d + padded_rank(rank), dtype=dtype, device=device)
        rstd = norm_forward(residual, None, norm, settings.eps, x[:, :d])
        if A is not None:
            narrow(x[:, :d], A.contiguous(), settings.pairs, settings.dropout, x[:, d:])
        both, out_narrow = joined(weight, B, settings.scale, dtype), out_weight.to(dtype)
        zxBCdt = torch.mm(x, both.t())
        z, xBC, raw = _cut(zxBCdt, e, c)
        dt = torch.empty(t, h, dtype=torch.float32, device=device)
        sizes = {"ROWS": STEP_SIZE.rows, "H": triton.next_power_of_2(h), "num_warps": STEP_SIZE.warps}
        _step_sizes[(triton.cdiv(t, STEP_SIZE.rows),)](raw, dt_bias, dt, t, h, raw.stride(0), **sizes)
        xBC = conv_forward(xBC, conv, conv_bias, settings.packing)
        decay = -A_log.float().exp()
        scanned, B_scan, C_scan = _scan_inputs(xBC, e, h, settings)
        y = scan_forward(scanned, dt, decay, B_scan, C_scan, D, settings.packing).view(t, e)
        gated = torch.empty(t, e, dtype=dtype, device=device)
        gate_rstd = norm_forward(y, z, gate, settings.eps, gated)
        ctx.save_for_backward(
            residual, norm, A, conv, conv_bias, dt_bias, decay, D, gate,
            x, rstd, both, zxBCdt, xBC, dt, y, gate_rstd, out_narrow,
        )  # fmt: skip
        ctx.settings, ctx.rank, ctx.out_features = settings, rank, len(weight)
        ctx.dtypes = [t.dtype if isinstance(t, Tensor) else None for t in (weight, B, A_log, out_weight)]
        return add(residual, torch.mm(gated, out_narrow.t()))

    @staticmethod
    def backward(ctx, dnew):  # type: ignore[no-untyped-def]
        saved = ctx.saved_tensors
        residual, norm, A, conv, conv_bias, dt_bias, decay, D, gate = saved[:9]
        x, rstd, both, zxBCdt, xBC, dt, y, gate_rstd, out_narrow = saved[9:]
        t, d = residual.shape
        e, c = len(gate), len(conv)
        wanted = ctx.needs_input_grad
        _, _, log_dtype, out_dtype = ctx.dtypes
        dnew = dnew.contiguous()
        dzxBCdt = torch.empty_like(zxBCdt)
        parts, dparts = _cut(zxBCdt, e, c), _cut(dzxBCdt, e, c)

        dout = _narrowed(dnew, x.dtype)
        dy, gated = torch.mm(dout, out_narrow), torch.empty(t, e, dtype=x.dtype, device=x.device)
        # dy is read before it is written over
        dgate = norm_backward(y, parts[0], gate, gate_rstd, dy, dy, dparts[0], gated)
        dout_weight = torch.mm(dout.t(), gated).to(out_dtype) if wanted[11] else None
        del gated
        dconv, dconv_bias, ddecay, dD, ddt_bias = _backward_between(
            ctx.settings, conv, conv_bias, dt_bias, decay, D, dt, xBC, dy, parts, dparts
        )
        del dy
        dweight, dB = _backward_weights(ctx, x, dzxBCdt)
        dx, dA = torch.mm(dzxBCdt, both), None
        pairs, dropout = ctx.settings.pairs, ctx.settings.dropout
        if wanted[3]:
            dA = narrow_gradient(x[:, :d], dx[:, d:], len(A), pairs, dropout).to(A.dtype)
        dresidual, narrowed, dnorm = residual_backward(residual, rstd, norm, dx, A, dnew, pairs, dropout)
        dresidual.narrowed = narrowed, dresidual._version  # read by _narrowed in the layer before
        return (
            dresidual, dnorm.to(norm.dtype), dweight, dA, dB, dconv.to(conv.dtype), dconv_bias.to(conv_bias.dtype),
            ddt_bias.to(dt_bias.dtype), (ddecay * decay).to(log_dtype), dD.to(D.dtype), dgate.to(gate.dtype),
            dout_weight, None,
        )  # fmt: skip


def _narrowed(dnew: Tensor, dtype: torch.dtype) -> Tensor:
    """dnew (t d) in the products' dtype: the copy that the layer after has left on it, or one made now.

    Autograd hands on the tensor itself where nothing else wants its gradient. Where it made another, or added to this
    one since, there is no copy, or one of another version.
    """
    copy, version = getattr(dnew, "narrowed", (None, None))
    if copy is None or version != dnew._version or copy.dtype != dtype:
        return dnew.to(dtype)
    left: Tensor = copy
    return left


def _backward_weights(ctx, x: Tensor, drows: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[no-untyped-def]
    """Gradients of W and of LoRA's B where they train: x (t d+padded_rank) went in, drows (t o) came back."""
    weight_dtype, B_dtype, _, _ = ctx.dtypes
    _, _, wants_weight, _, wants_B, *_ = ctx.needs_input_grad
    width, out = x.shape[1] - padded_rank(ctx.rank), ctx.out_features
    dweight = torch.empty(out, width, dtype=weight_dtype, device=x.device) if wants_weight else None
    dB = torch.empty(out, ctx.rank, dtype=B_dtype, device=x.device) if wants_B else None
    if wants_weight or wants_B:
        both = torch.mm(drows.t(), x if wants_weight else x[:, width:])
        parted(both, dweight, dB, ctx.settings.scale, ctx.rank)
    return dweight, dB


def _backward_between(
    settings: BlockSettings,
    conv: Tensor,
    conv_bias: Tensor,
    dt_bias: Tensor,
    decay: Tensor,
    D: Tensor,
    dt: Tensor,
    xBC: Tensor,
    dy: Tensor,
    parts: tuple[Tensor, Tensor, Tensor],
    dparts: tuple[Tensor, Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """From the scan back to in_proj: writes dparts; gradients of convolution, bias, decay, D and dt's bias."""
    (_, raw_xBC, raw), (_, draw_xBC, draw) = parts, dparts
    t, h = dt.shape
    e, packing = dy.shape[1], settings.packing
    dxBC = torch.empty_like(xBC)
    x, B, C = _scan_inputs(xBC, e, h, settings)
    dx, dB, dC = _scan_inputs(dxBC, e, h, settings)
    dy = dy.unflatten(-1, (h, e // h))
    ddt, ddecay, dD, _ = scan_backward(x, dt, decay, B, C, D, packing, None, dy, None, dx, dB, dC)
    dconv, dconv_bias = conv_backward(raw_xBC, conv, conv_bias, packing, None, dxBC, draw_xBC, None)
    programs, width = triton.cdiv(t, STEP_SIZE.rows), draw.shape[1]
    ddt_bias = torch.empty(programs, h, dtype=torch.float32, device=dt.device)
    _step_sizes_backward[(programs,)](
        raw, dt_bias, ddt, draw, ddt_bias, t, h, width, raw.stride(0), draw.stride(0),
        ROWS=STEP_SIZE.rows, H=triton.next_power_of_2(width), num_warps=STEP_SIZE.warps,
    )  # fmt: skip
    return dconv, dconv_bias, ddecay, dD, ddt_bias.sum(0)


def block(
    residual: Tensor,
    norm: Tensor,
    weight: Tensor,
    A: Tensor | None,
    B: Tensor | None,
    conv: Tensor,
    conv_bias: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    gate: Tensor,
    out_weight: Tensor,
    settings: BlockSettings,
) -> Tensor:
    """The next residual (t d) float32 after residual (t d) float32, both packed rows.

    norm (d); in_proj: weight (w d) and LoRA's A (r d), B (w r), pairs side by side, or None; conv (c k), k at
    most 4, conv_bias (c); dt_bias, A_log, D (h); gate (e), the gated norm's weight; out_weight (d e).
    """
    tensors = (residual, norm, weight, A, B, conv, conv_bias, dt_bias, A_log, D, gate, out_weight)
    return _Block.apply(*tensors, settings)  # type: ignore[no-any-return,no-untyped-call]
