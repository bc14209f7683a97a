"""A decoding step of many rows: a few Triton kernels a layer, the sums over columns in parts that fill the chip.

in_proj as `product`, `triton_step.mixer_step`, out_proj as `product`, and what joins its parts onto the residual: the
last of the programs that share a tile, or `join_norm`, a kernel of its own. The factor of a norm is one number a row,
so it comes after the product that follows; it is made of sums of squares that whoever wrote the rows has left. The
convolution is in_proj's last act, so that each channel's is computed once: in the mixer every head would compute those
of B and C again, which takes more instructions than its state. Sums are added up in one order whoever comes last: the
same rows give the same bits every time.
Held to ops/reference.py by tests/ops. Importing needs Triton.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from omnimamba_cli.ops.reference import Convolution, Join, Squares
from omnimamba_cli.ops.step_plans import ProductPlan
from omnimamba_cli.ops.triton_step import release, wait

PIECE = 64  # sums of squares of a row that are loaded at once


@triton.jit
def _squares(squares_ptr, bs, b, s: tl.constexpr, PIECE: tl.constexpr):
    """The sums of squares of rows bs, s parts of each added up to PIECE."""
    ss = tl.arange(0, PIECE)
    cell = squares_ptr + bs[:, None] * s + ss[None]
    total = tl.load(cell, mask=(bs < b)[:, None] & (ss < s)[None], other=0.0)
    for first in tl.static_range(PIECE, s, PIECE):
        total += tl.load(cell + first, mask=(bs < b)[:, None] & (ss + first < s)[None], other=0.0)
    return total


@triton.jit
def _factor(squares, columns, eps):
    """1 / rms of each row."""
    return 1 / tl.sqrt(tl.sum(squares, 1) / columns + eps)


@triton.jit
def _join_norm(residual_ptr, parts_ptr, squares_ptr, norm_ptr, out_ptr, b, c, e, eps, SPLITS: tl.constexpr,
               s: tl.constexpr, S: tl.constexpr, C: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
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
        x += y / tl.sqrt(tl.sum(squares, 0) / e + eps)
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
        SPLITS=0 if parts is None else len(parts), s=s, S=triton.next_power_of_2(s), C=triton.next_power_of_2(c),
        PDL=pdl, num_warps=8, **({"launch_pdl": True} if pdl else {}),
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
def _join(x, norm, residual_ptr, next_ptr, sums_ptr, place, keep, bs, b):
    """Leaves the residual x (ROWS BATCH) and what the next product reads, for a norm's weights (ROWS)."""
    tl.store(residual_ptr + place, x, mask=keep)
    tl.store(next_ptr + place, x * norm[:, None], mask=keep)
    tl.store(sums_ptr + bs * tl.num_programs(0) + tl.program_id(0), tl.sum(x * x, 0), mask=bs < b)


@triton.jit
def _from_here(x):
    """x; whatever is done with it stays behind what is done before: the compiler would wait for it before a loop."""
    if x.dtype.primitive_bitwidth == 16:
        x = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=x.dtype, is_pure=False, pack=2)
    return x


@triton.jit
def _product(x_ptr, w_ptr, scale_ptr, out_ptr, squares_ptr, ring_ptr, position_ptr, conv_ptr, bias_ptr,
             residual_ptr, norm_ptr, next_ptr, sums_ptr, counts_ptr, b, rows, first, channels, squared, eps,
             c: tl.constexpr, PART: tl.constexpr, BATCH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
             AHEAD: tl.constexpr, LATE: tl.constexpr, TURNED: tl.constexpr, SCALED: tl.constexpr, s: tl.constexpr,
             PIECE: tl.constexpr, k: tl.constexpr, JOINED: tl.constexpr, SPLITS: tl.constexpr, PDL: tl.constexpr,
             precision: tl.constexpr):  # fmt: skip
    """A tile of ROWS weights' rows and BATCH rows of x, over PART columns."""
    TURNS: tl.constexpr = (PART - AHEAD) // COLUMNS
    if LATE is None or LATE >= TURNS:
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
    if JOINED:
        norm = tl.load(norm_ptr + rs, mask=rs < rows, other=0.0).to(tl.float32)
    if AHEAD > 0:
        hs = split * PART + tl.arange(0, AHEAD)
        held = tl.load(weights + hs[None], mask=(rs < rows)[:, None] & (hs < c)[None], other=0.0)
    wait(PDL)
    keep = (bs < b)[None] & (rs < rows)[:, None]
    place = bs.to(tl.int64)[None] * rows + rs[:, None]
    if JOINED:
        residual = tl.load(residual_ptr + place, mask=keep, other=0.0)
    if AHEAD > 0:
        x_held = tl.load(x_ptr + bs[:, None] * c + hs[None], mask=(bs < b)[:, None] & (hs < c)[None], other=0.0)
    if s > 0 and not JOINED:
        squares = _squares(squares_ptr, bs, b, s, PIECE)
    for turn in range(TURNS):
        here = (turn + tl.program_id(0)) % TURNS if TURNED else turn
        ks = split * PART + AHEAD + here * COLUMNS + tl.arange(0, COLUMNS)
        w = tl.load(weights + ks[None], mask=(rs < rows)[:, None] & (ks < c)[None], other=0.0)
        x = tl.load(x_ptr + bs[:, None] * c + ks[None], mask=(bs < b)[:, None] & (ks < c)[None], other=0.0)
        acc = tl.dot(w.to(x.dtype), tl.trans(x), acc, input_precision=precision)
        if LATE is not None and LATE > 0:  # noqa: SIM102 (this one the compiler decides)
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
    if s > 0 and not JOINED:
        acc *= _factor(squares, squared, eps)[None]
    if k > 0:
        new = acc.to(ring_ptr.dtype.element_ty)
        total = older + new.to(tl.float32) * tap[:, None]
        tl.store(ring_ptr + newest[None] + inner[:, None], new, mask=convolved[:, None] & (bs < b)[None])
        acc = tl.where(convolved[:, None], total / (1 + tl.exp(-total)), acc)
    if not JOINED or SPLITS > 1:
        tl.store(out_ptr + split * b * rows + place, acc, mask=keep)
    if JOINED:
        factor = _factor(_squares(squares_ptr, bs, b, s, PIECE), squared, eps)[None]
        if SPLITS == 1:
            _join(residual + acc * factor, norm, residual_ptr, next_ptr, sums_ptr, place, keep, bs, b)
        else:
            count = counts_ptr + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
            tl.debug_barrier()  # every thread's part is written before one of them says so
            if tl.atomic_add(count, 1, sem="acq_rel", scope="gpu") == SPLITS - 1:
                y = tl.zeros((ROWS, BATCH), tl.float32)
                for i in tl.static_range(SPLITS):
                    y += tl.load(out_ptr + i * b * rows + place, mask=keep, other=0.0, cache_modifier=".cg")
                _join(residual + y * factor, norm, residual_ptr, next_ptr, sums_ptr, place, keep, bs, b)
                tl.store(count, 0)


def product(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    out: Tensor,
    *,
    plan: ProductPlan,
    squares: Squares | None = None,
    convolution: Convolution | None = None,
    join: Join | None = None,
    pdl: bool = False,
) -> None:
    """Same contract as reference.product; plan is one of step_plans' "tile" with as many splits as out has parts.

    A join needs squares.
    """
    assert convolution is None or plan.splits == 1, "a part of a sum has no convolution"
    assert join is None or squares is not None, "what is joined has a norm before it"
    none = (out, out, out, out)
    ring, position, taps, bias, first = convolution or (*none, 0)
    b, c = x.shape
    rows = len(weight)
    batch = min(64, max(16, triton.next_power_of_2(b)))
    part = triton.cdiv(c, plan.splits)
    ahead = plan.ahead if plan.ahead < part else 0
    part = triton.cdiv(part - ahead, plan.columns) * plan.columns + ahead
    s = 0 if squares is None else squares.parts.shape[1]
    # float32 in full: the fast path must give the reference's greedy tokens
    precision = "ieee" if x.dtype == torch.float32 else "tf32"
    _product[(triton.cdiv(rows, plan.rows), triton.cdiv(b, batch), plan.splits)](
        x, weight, weight if scale is None else scale, out, out if squares is None else squares.parts,
        ring, position, taps, bias, *(join or (*none, out)), b, rows, first, taps.shape[-1],
        squares.columns if squares else c, squares.eps if squares else 0.0,
        c=c, PART=part, BATCH=batch, ROWS=plan.rows, COLUMNS=plan.columns, AHEAD=ahead, LATE=plan.late,
        TURNED=plan.turned, SCALED=scale is not None, s=s, PIECE=min(PIECE, max(16, triton.next_power_of_2(s))),
        k=0 if convolution is None else len(taps), JOINED=join is not None, SPLITS=plan.splits, PDL=pdl,
        precision=precision, num_warps=plan.warps, num_stages=plan.stages, **({"launch_pdl": True} if pdl else {}),
    )  # fmt: skip
