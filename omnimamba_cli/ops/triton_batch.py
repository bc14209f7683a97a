"""A decoding step of many rows: four Triton kernels a layer, the sums over columns in parts that fill the chip.

`join_norm` (the parts of the last product onto the residual, and the norm before the next), in_proj as `product`,
`triton_step.mixer_step`, out_proj as `product`. The gated norm's factor is one number a row, so it comes after the
product: `join_norm` finds it in what the mixer leaves before the norm's weight. The convolution is in_proj's last act,
so that each channel's is computed once: in the mixer every head would compute those of B and C again, which takes more
instructions than its state. Nothing is added up by atomics: the same rows give the same bits every time.
Held to ops/reference.py by tests/ops. Importing needs Triton.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from omnimamba_cli.ops.reference import Convolution
from omnimamba_cli.ops.step_plans import ProductPlan
from omnimamba_cli.ops.triton_step import release, wait


@triton.jit
def _join_norm(residual_ptr, parts_ptr, unweighted_ptr, norm_ptr, out_ptr, b, c, e, eps, SPLITS: tl.constexpr,
               C: tl.constexpr, E: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    release(PDL)
    row = tl.program_id(0).to(tl.int64)
    cs = tl.arange(0, C)
    norm = tl.load(norm_ptr + cs, mask=cs < c, other=0.0).to(tl.float32)
    wait(PDL)
    x = tl.load(residual_ptr + row * c + cs, mask=cs < c, other=0.0)
    if SPLITS > 0:
        y = tl.zeros((C,), tl.float32)
        for i in tl.static_range(SPLITS):
            y += tl.load(parts_ptr + (i * b + row) * c + cs, mask=cs < c, other=0.0).to(tl.float32)
        es = tl.arange(0, E)
        before = tl.load(unweighted_ptr + row * e + es, mask=es < e, other=0.0).to(tl.float32)
        x += y / tl.sqrt(tl.sum(before * before, 0) / e + eps)
        tl.store(residual_ptr + row * c + cs, x, mask=cs < c)
    tl.store(out_ptr + row * c + cs, x * norm / tl.sqrt(tl.sum(x * x, 0) / c + eps), mask=cs < c)


def join_norm(
    residual: Tensor,
    parts: Tensor | None,
    unweighted: Tensor,
    norm: Tensor,
    eps: float,
    out: Tensor,
    *,
    pdl: bool = False,
) -> None:
    """Same contract as reference.join_norm."""
    b, c = residual.shape
    e = unweighted.shape[1]
    _join_norm[(b,)](
        residual, residual if parts is None else parts, unweighted, norm, out, b, c, e, eps,
        SPLITS=0 if parts is None else len(parts), C=triton.next_power_of_2(c), E=triton.next_power_of_2(e), PDL=pdl,
        num_warps=8, **({"launch_pdl": True} if pdl else {}),
    )  # fmt: skip


@triton.jit
def _product(x_ptr, w_ptr, scale_ptr, out_ptr, ring_ptr, position_ptr, conv_ptr, bias_ptr, b, rows, first, channels,
             c: tl.constexpr, PART: tl.constexpr, BATCH: tl.constexpr,
             ROWS: tl.constexpr, COLUMNS: tl.constexpr, SCALED: tl.constexpr, k: tl.constexpr,
             PDL: tl.constexpr, precision: tl.constexpr):  # fmt: skip
    """A tile of ROWS weights' rows and BATCH rows of x, over PART columns."""
    release(PDL)
    rs = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    bs = tl.program_id(1) * BATCH + tl.arange(0, BATCH)
    split = tl.program_id(2)
    acc = tl.zeros((ROWS, BATCH), tl.float32)
    weights = w_ptr + rs.to(tl.int64)[:, None] * c
    if SCALED:
        scale = tl.load(scale_ptr + rs, mask=rs < rows, other=0.0).to(tl.float32)
    wait(PDL)
    for start in range(split * PART, (split + 1) * PART, COLUMNS):
        ks = start + tl.arange(0, COLUMNS)
        w = tl.load(weights + ks[None], mask=(rs < rows)[:, None] & (ks < c)[None], other=0.0)
        x = tl.load(x_ptr + bs[:, None] * c + ks[None], mask=(bs < b)[:, None] & (ks < c)[None], other=0.0)
        acc = tl.dot(w.to(x.dtype), tl.trans(x), acc, input_precision=precision)
    if SCALED:
        acc *= scale[:, None]
    if k > 0:
        inner = rs - first
        convolved = (inner >= 0) & (inner < channels)
        here = convolved[:, None] & (bs < b)[None]
        new = acc.to(ring_ptr.dtype.element_ty)
        position = tl.load(position_ptr + bs, mask=bs < b, other=0)
        total = tl.load(bias_ptr + inner, mask=convolved, other=0.0).to(tl.float32)[:, None]
        for j in tl.static_range(k):
            slot = ring_ptr + ((bs.to(tl.int64) * k + (position + 1 + j) % k) * channels)[None] + inner[:, None]
            tap = tl.load(conv_ptr + j * channels + inner, mask=convolved, other=0.0).to(tl.float32)[:, None]
            if j < k - 1:
                total = total + tl.load(slot, mask=here, other=0.0).to(tl.float32) * tap
            else:
                total = total + new.to(tl.float32) * tap
                tl.store(slot, new, mask=here)
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
    part = triton.cdiv(triton.cdiv(c, plan.splits), plan.columns) * plan.columns
    # float32 in full: the fast path must give the reference's greedy tokens
    precision = "ieee" if x.dtype == torch.float32 else "tf32"
    _product[(triton.cdiv(rows, plan.rows), triton.cdiv(b, batch), plan.splits)](
        x, weight, weight if scale is None else scale, out, ring, position, taps, bias, b, rows, first, taps.shape[-1],
        c=c, PART=part, BATCH=batch, ROWS=plan.rows, COLUMNS=plan.columns, SCALED=scale is not None,
        k=0 if convolution is None else len(taps), PDL=pdl, precision=precision,
        num_warps=plan.warps,
        num_stages=plan.stages, **({"launch_pdl": True} if pdl else {}),
    )  # fmt: skip
