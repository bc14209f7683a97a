"""A decoding step of many rows: a few Triton kernels a layer, the sums over columns in parts that fill the chip.

in_proj as `product`, `triton_step.mixer_step`, out_proj as `product`, and `join_norm`, which joins its parts onto the
residual. The factor of the norm before out_proj is one number a row, so it comes after the product; it is made of sums
of squares that the mixer has left. The convolution is in_proj's last act, so that each channel's is computed once: in
the mixer every head would compute those of B and C again, which takes more instructions than its state. Every sum has
one order: the same rows give the same bits every time.
Held to ops/reference.py by tests/ops. Importing needs Triton.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from omnimamba_cli.ops.reference import SHRINK, Convolution, Squares
from omnimamba_cli.ops.step_plans import ProductPlan
from omnimamba_cli.ops.triton_step import release, wait


@triton.jit
def _join_norm(residual_ptr, parts_ptr, squares_ptr, norm_ptr, out_ptr, b, c, e, eps, SHRINK: tl.constexpr,
               SPLITS: tl.constexpr, s: tl.constexpr, S: tl.constexpr, C: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    release(PDL)
    row = tl.program_id(0).to(tl.int64)
    cs = tl.arange(0, C)
    norm = tl.load(norm_ptr + cs, mask=cs < c, other=0.0).to(tl.float32)
    wait(PDL)
    x = tl.load(residual_ptr + row * c + cs, mask=cs < c, other=0.0)
    if SPLITS > 0:
        ss = tl.arange(0, S)
        squares = tl.load(squares_ptr + row * s + ss, mask=ss < s, other=0.0)
        y = tl.zeros((C,), tl.float32)
        for i in tl.static_range(SPLITS):
            y += tl.load(parts_ptr + (i * b + row) * c + cs, mask=cs < c, other=0.0).to(tl.float32)
        x += y / (tl.sqrt(tl.sum(squares, 0) / e + eps) * SHRINK)
        tl.store(residual_ptr + row * c + cs, x, mask=cs < c)
    tl.store(out_ptr + row * c + cs, x * norm / tl.sqrt(tl.sum(x * x, 0) / c + eps), mask=cs < c)


def join_norm(
    residual: Tensor,
    parts: Tensor | None,
    squares: Squares,
    norm: Tensor,
    eps: float,
    out: Tensor,
    *,
    pdl: bool = False,
) -> None:
    """Same contract as reference.join_norm; both norms have one eps."""
    b, c = residual.shape
    s = squares.parts.shape[1]
    _join_norm[(b,)](
        residual, residual if parts is None else parts, squares.parts, norm, out, b, c, squares.columns, eps,
        SHRINK=SHRINK, SPLITS=0 if parts is None else len(parts), s=s, S=triton.next_power_of_2(s),
        C=triton.next_power_of_2(c), PDL=pdl, num_warps=8, **({"launch_pdl": True} if pdl else {}),
    )  # fmt: skip


@triton.jit
def _older_taps(ring_ptr, position_ptr, conv_ptr, bias_ptr, inner, convolved, bs, b, channels, k: tl.constexpr):
    """The convolution's sum without its newest tap, of channels `inner` (ROWS) and rows bs (BATCH)."""
    position = tl.load(position_ptr + bs, mask=bs < b, other=0)
    total = tl.load(bias_ptr + inner, mask=convolved, other=0.0).to(tl.float32)[:, None]
    total = tl.broadcast_to(total, (inner.shape[0], bs.shape[0]))
    for j in tl.static_range(k - 1):
        slot = (bs.to(tl.int64) * k + (position + 1 + j) % k) * channels
        tap = tl.load(conv_ptr + j * channels + inner, mask=convolved, other=0.0).to(tl.float32)[:, None]
        old = tl.load(ring_ptr + slot[None] + inner[:, None], mask=convolved[:, None] & (bs < b)[None], other=0.0)
        total += old.to(tl.float32) * tap
    newest = (bs.to(tl.int64) * k + position % k) * channels
    return total, newest


@triton.jit
def _from_here(x):
    """Returns x, whose uses then stay after the code before them; else the compiler waits for x before the loop."""
    if x.dtype.primitive_bitwidth == 16:
        x = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=x.dtype, is_pure=False, pack=2)
    return x


@triton.jit
def _product(x_ptr, w_ptr, scale_ptr, out_ptr, ring_ptr, position_ptr, conv_ptr, bias_ptr, b, rows, first, channels,
             c: tl.constexpr, PART: tl.constexpr, BATCH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
             AHEAD: tl.constexpr, LATE: tl.constexpr, SCALED: tl.constexpr, k: tl.constexpr, PDL: tl.constexpr,
             precision: tl.constexpr):  # fmt: skip
    """A tile of ROWS weights' rows and BATCH rows of x, over PART columns."""
    TURNS: tl.constexpr = (PART - AHEAD) // COLUMNS
    if LATE >= TURNS:
        release(PDL)
    rs = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    bs = tl.program_id(1) * BATCH + tl.arange(0, BATCH)
    split = tl.program_id(2)
    acc = tl.zeros((ROWS, BATCH), tl.float32)
    weights = w_ptr + rs.to(tl.int64)[:, None] * c
    # all of this is older than the step, or at least than the kernel before
    if SCALED:
        scale = tl.load(scale_ptr + rs, mask=rs < rows, other=0.0).to(tl.float32)
    if k > 0:
        inner = rs - first
        convolved = (inner >= 0) & (inner < channels)
        older, newest = _older_taps(ring_ptr, position_ptr, conv_ptr, bias_ptr, inner, convolved, bs, b, channels, k)
        tap = tl.load(conv_ptr + (k - 1) * channels + inner, mask=convolved, other=0.0).to(tl.float32)
    if AHEAD > 0:
        hs = split * PART + tl.arange(0, AHEAD)
        held = tl.load(weights + hs[None], mask=(rs < rows)[:, None] & (hs < c)[None], other=0.0)
    wait(PDL)
    if AHEAD > 0:
        x_held = tl.load(x_ptr + bs[:, None] * c + hs[None], mask=(bs < b)[:, None] & (hs < c)[None], other=0.0)
    for turn in range(TURNS):
        ks = split * PART + AHEAD + turn * COLUMNS + tl.arange(0, COLUMNS)
        w = tl.load(weights + ks[None], mask=(rs < rows)[:, None] & (ks < c)[None], other=0.0)
        x = tl.load(x_ptr + bs[:, None] * c + ks[None], mask=(bs < b)[:, None] & (ks < c)[None], other=0.0)
        acc = tl.dot(w.to(x.dtype), tl.trans(x), acc, input_precision=precision)
        if LATE > 0:  # noqa: SIM102 (this one the compiler decides)
            if turn == TURNS - LATE:
                release(PDL)
    if AHEAD > 0:
        if PDL:
            x_held = _from_here(x_held)
        acc = tl.dot(held.to(x_held.dtype), tl.trans(x_held), acc, input_precision=precision)
    if LATE == 0:
        release(PDL)
    if SCALED:
        acc *= scale[:, None]
    if k > 0:
        new = acc.to(ring_ptr.dtype.element_ty)
        total = older + new.to(tl.float32) * tap[:, None]
        tl.store(ring_ptr + newest[None] + inner[:, None], new, mask=convolved[:, None] & (bs < b)[None])
        acc = tl.where(convolved[:, None], total / (1 + tl.exp(-total)), acc)
    place = (split * b + bs).to(tl.int64)[None] * rows + rs[:, None]
    tl.store(out_ptr + place, acc, mask=(bs < b)[None] & (rs < rows)[:, None])


def product(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    out: Tensor,
    *,
    plan: ProductPlan,
    convolution: Convolution | None = None,
    pdl: bool = False,
) -> None:
    """Same contract as reference.product; plan is one of step_plans' "tile" with as many splits as out has parts."""
    assert convolution is None or plan.splits == 1, "a part of a sum has no convolution"
    ring, position, taps, bias, first = convolution or (out, out, out, out, 0)
    b, c = x.shape
    rows = len(weight)
    batch = min(64, max(16, triton.next_power_of_2(b)))
    part = triton.cdiv(c, plan.splits)
    ahead = plan.ahead if pdl and plan.ahead < part else 0  # without pdl no kernel before is running still
    part = triton.cdiv(part - ahead, plan.columns) * plan.columns + ahead
    # float32 in full: the fast path must give the reference's greedy tokens
    precision = "ieee" if x.dtype == torch.float32 else "tf32"
    _product[(triton.cdiv(rows, plan.rows), triton.cdiv(b, batch), plan.splits)](
        x, weight, weight if scale is None else scale, out, ring, position, taps, bias, b, rows, first, taps.shape[-1],
        c=c, PART=part, BATCH=batch, ROWS=plan.rows, COLUMNS=plan.columns, AHEAD=ahead,
        LATE=c if plan.late is None else plan.late, SCALED=scale is not None,
        k=0 if convolution is None else len(taps), PDL=pdl, precision=precision, num_warps=plan.warps,
        num_stages=plan.stages, **({"launch_pdl": True} if pdl else {}),
    )  # fmt: skip
