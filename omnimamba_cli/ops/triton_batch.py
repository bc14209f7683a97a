"""A decoding step of many rows: four Triton kernels a layer, the sums over columns in parts that fill the chip.

`join_norm` (the parts of the last product onto the residual, and the norm before the next), in_proj as `product`,
`triton_step.mixer_step`, out_proj as `product`. The gated norm's factor is one number a row, so it comes after the
product: the mixer leaves sums of squares, which `join_norm` takes up. Nothing is added up by atomics: the same rows
give the same bits every time. Held to ops/reference.py by tests/ops. Importing needs Triton.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from omnimamba_cli.ops.step_plans import ProductPlan
from omnimamba_cli.ops.triton_step import release, wait


@triton.jit
def _join_norm(residual_ptr, parts_ptr, squares_ptr, norm_ptr, out_ptr, b, c, eps, width, count, SPLITS: tl.constexpr,
               COUNT: tl.constexpr, C: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
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
        each = tl.arange(0, COUNT)
        squares = tl.sum(tl.load(squares_ptr + row * count + each, mask=each < count, other=0.0), 0)
        x += y / tl.sqrt(squares / width + eps)
        tl.store(residual_ptr + row * c + cs, x, mask=cs < c)
    tl.store(out_ptr + row * c + cs, x * norm / tl.sqrt(tl.sum(x * x, 0) / c + eps), mask=cs < c)


def join_norm(
    residual: Tensor,
    parts: Tensor | None,
    squares: Tensor,
    width: int,
    norm: Tensor,
    eps: float,
    out: Tensor,
    *,
    pdl: bool = False,
) -> None:
    """Same contract as reference.join_norm."""
    b, c = residual.shape
    count = squares[0].numel()
    _join_norm[(b,)](
        residual, residual if parts is None else parts, squares, norm, out, b, c, eps, width, count,
        SPLITS=0 if parts is None else len(parts), COUNT=triton.next_power_of_2(count), C=triton.next_power_of_2(c),
        PDL=pdl, num_warps=8, **({"launch_pdl": True} if pdl else {}),
    )  # fmt: skip


@triton.jit
def _product(x_ptr, w_ptr, scale_ptr, out_ptr, b, rows, c: tl.constexpr, PART: tl.constexpr, BATCH: tl.constexpr,
             ROWS: tl.constexpr, COLUMNS: tl.constexpr, SCALED: tl.constexpr, PDL: tl.constexpr,
             precision: tl.constexpr):  # fmt: skip
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
    place = (split * b + bs).to(tl.int64)[None] * rows + rs[:, None]
    tl.store(out_ptr + place, acc, mask=(bs < b)[None] & (rs < rows)[:, None])


def product(
    x: Tensor, weight: Tensor, scale: Tensor | None, out: Tensor, *, plan: ProductPlan, pdl: bool = False
) -> None:
    """Same contract as reference.product; plan is one of step_plans' "tile" with as many splits as out has parts."""
    b, c = x.shape
    rows = len(weight)
    batch = min(64, max(16, triton.next_power_of_2(b)))
    part = triton.cdiv(triton.cdiv(c, plan.splits), plan.columns) * plan.columns
    # float32 in full: the fast path must give the reference's greedy tokens
    precision = "ieee" if x.dtype == torch.float32 else "tf32"
    _product[(triton.cdiv(rows, plan.rows), triton.cdiv(b, batch), plan.splits)](
        x, weight, weight if scale is None else scale, out, b, rows, c=c, PART=part, BATCH=batch, ROWS=plan.rows,
        COLUMNS=plan.columns, SCALED=scale is not None, PDL=pdl, precision=precision, num_warps=plan.warps,
        num_stages=plan.stages, **({"launch_pdl": True} if pdl else {}),
    )  # fmt: skip
