"""Dropout and the A half of LoRA pairs, dropout(x) A^T, as Triton kernels that never write the dropped-out x.

Rows of two tasks, each with its own pair, go through together: the pairs stand side by side, [A; A'] (r d) and [B, B']
(w r), and a row of the result is zero in the columns of the other task's pair.

Which entries dropout keeps is a hash of a seed and the entry's place, so that the backward pass computes it again and
no mask is stored. Held to plain PyTorch by tests/ops. Importing needs Triton.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from omnimamba_cli.ops.train_plans import JOIN, LORA, LORA_GRADIENT, TilePlan


@dataclass(frozen=True)
class Dropout:
    """Entries become zero with a probability; the others are scaled up so that the mean stays."""

    probability: float = 0.0
    seed: int = 0  # below 2^31

    @property
    def threshold(self) -> int:
        """An entry is kept where its 31 random bits, as a number, are at least this."""
        return round(self.probability * 2**31)

    @property
    def factor(self) -> float:
        """What kept entries are multiplied by."""
        return 1 / (1 - self.probability)


@dataclass(frozen=True)
class Pairs:
    """LoRA pairs side by side: rows before `bound` use the first pair, the others, if any, the second."""

    rank: int  # of each pair
    bound: int


@triton.jit
def kept(seed, threshold, rows, columns, width):
    """Whether dropout keeps the entries of some rows and columns; a hash of their place (MurmurHash3's last steps)."""
    bits = (rows.to(tl.uint32) * width + columns.to(tl.uint32)) * 0x9E3779B1 + seed.to(tl.uint32)
    bits = (bits ^ (bits >> 16)) * 0x85EBCA6B
    bits = (bits ^ (bits >> 13)) * 0xC2B2AE35
    bits = (bits ^ (bits >> 16)) >> 1
    return bits.to(tl.int32) >= threshold


@triton.jit
def _own(rows, rs, bound, each):
    """Which columns belong to a row's pair: the first `each` for rows before `bound`, then the next ones."""
    return (rs // each)[None] == (rows >= bound)[:, None].to(tl.int32)


@triton.jit
def _dropped(ptr, rows, columns, count, width, stride, seed, threshold, factor, DROP: tl.constexpr):
    """A tile of x after dropout, in x's dtype; zeros past the end."""
    mask = (rows < count)[:, None] & (columns < width)[None]
    x = tl.load(ptr + rows[:, None].to(tl.int64) * stride + columns[None], mask=mask, other=0.0)
    if DROP:
        keep = kept(seed, threshold, rows[:, None], columns[None], width)
        x = tl.where(keep, x.to(tl.float32) * factor, 0.0).to(x.dtype)
    return x


@triton.jit(do_not_specialize=["seed", "threshold", "count", "bound"])
def _narrow(x_ptr, A_ptr, out_ptr, seed, threshold, factor, count, width, rank, bound, each, sx, so,
            DROP: tl.constexpr, R: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
            precision: tl.constexpr):  # fmt: skip
    rows, rs = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, R)
    total = tl.zeros((ROWS, R), tl.float32)
    for start in range(0, width, COLUMNS):
        cs = start + tl.arange(0, COLUMNS)
        x = _dropped(x_ptr, rows, cs, count, width, sx, seed, threshold, factor, DROP)
        inside = (rs < rank)[:, None] & (cs < width)[None]
        A = tl.load(A_ptr + rs[:, None] * width + cs[None], mask=inside, other=0.0).to(x.dtype)
        total = tl.dot(x, tl.trans(A), total, input_precision=precision)
    total = tl.where(_own(rows, rs, bound, each), total, 0.0)
    tl.store(out_ptr + rows[:, None].to(tl.int64) * so + rs[None], total, mask=(rows < count)[:, None])


@triton.jit(do_not_specialize=["seed", "threshold", "count", "bound"])
def _narrow_gradient(x_ptr, d_ptr, parts_ptr, seed, threshold, factor, count, width, bound, each, sx, sd,
                     DROP: tl.constexpr, R: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
                     precision: tl.constexpr):  # fmt: skip
    """A part of A's gradient: of a block of columns and every num_programs(1)-th tile of rows."""
    cs, rs = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, R)
    total = tl.zeros((R, COLUMNS), tl.float32)
    for start in range(tl.program_id(1) * ROWS, count, tl.num_programs(1) * ROWS):
        rows = start + tl.arange(0, ROWS)
        x = _dropped(x_ptr, rows, cs, count, width, sx, seed, threshold, factor, DROP)
        place = d_ptr + rows[:, None].to(tl.int64) * sd + rs[None]
        d = tl.load(place, mask=(rows < count)[:, None] & _own(rows, rs, bound, each), other=0.0)
        total = tl.dot(tl.trans(d), x, total, input_precision=precision)
    place = (tl.program_id(1) * R + rs)[:, None] * width + cs[None]
    tl.store(parts_ptr + place, total, mask=(cs < width)[None])


def padded_rank(rank: int) -> int:
    """Columns of dropout(x) A^T: at least as many as the matrix units want, with zeros after the rank."""
    return 0 if rank == 0 else max(16, triton.next_power_of_2(rank))


@triton.jit
def _join(weight_ptr, B_ptr, out_ptr, scale, count, width, rank, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A tile of [W, scale B, 0] of `columns` columns; zeros below the weights' `count` rows, too."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    cs = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None]
    inside = rows < count
    value = tl.load(weight_ptr + rows * width + cs, mask=inside & (cs < width), other=0.0).to(tl.float32)
    if tl.program_id(1) * COLUMNS + COLUMNS > width:
        low = cs - width
        mask = inside & (low >= 0) & (low < rank)
        value += scale * tl.load(B_ptr + rows * rank + low, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + rows * columns + cs, value, mask=(rows < count + (8 - count % 8) % 8) & (cs < columns))


def joined(weight: Tensor, B: Tensor | None, scale: float, dtype: torch.dtype) -> Tensor:
    """[W, scale B, 0] in the products' dtype (o d+padded_rank), o a multiple of 8 as the fast matrix kernels want."""
    count, width = weight.shape
    rank = 0 if B is None else B.shape[1]
    rows, columns = count + -count % 8, width + padded_rank(rank)
    out = torch.empty(rows, columns, dtype=dtype, device=weight.device)
    _join[(triton.cdiv(rows, JOIN.rows), triton.cdiv(columns, JOIN.columns))](
        weight.contiguous(), weight if B is None else B.contiguous(), out, scale,
        count, width, rank, columns, ROWS=JOIN.rows, COLUMNS=JOIN.columns, num_warps=JOIN.warps,
    )  # fmt: skip
    return out


@triton.jit
def _part(joined_ptr, weight_ptr, B_ptr, scale, count, width, rank, columns, has_weight: tl.constexpr,
          has_B: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cs = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (rows < count)[:, None] & (cs < columns)[None]
    joined = tl.load(joined_ptr + rows[:, None].to(tl.int64) * columns + cs[None], mask=inside, other=0.0)
    joined = joined.to(tl.float32)
    if has_weight:
        place = weight_ptr + rows[:, None].to(tl.int64) * width + cs[None]
        tl.store(place, joined, mask=inside & (cs < width)[None])
    if has_B:
        low = cs - width
        mine = inside & ((low >= 0) & (low < rank))[None]
        tl.store(B_ptr + rows[:, None].to(tl.int64) * rank + low[None], joined * scale, mask=mine)


def parted(gradient: Tensor, weight: Tensor | None, B: Tensor | None, scale: float, rank: int) -> None:
    """Split the gradient (o' d+padded_rank) of joined()'s result and write it to those of W (o d) and B (o r)."""
    some = weight if weight is not None else B
    assert some is not None
    columns = gradient.shape[1]
    _part[(triton.cdiv(len(some), JOIN.rows), triton.cdiv(columns, JOIN.columns))](
        gradient, some if weight is None else weight, some if B is None else B, scale, len(some),
        columns - padded_rank(rank), rank, columns, has_weight=weight is not None, has_B=B is not None,
        ROWS=JOIN.rows, COLUMNS=JOIN.columns, num_warps=JOIN.warps,
    )  # fmt: skip


def _settings(x: Tensor, rank: int, dropout: Dropout, plan: TilePlan) -> dict[str, object]:
    return {
        "DROP": dropout.probability > 0,
        "R": padded_rank(rank),
        "ROWS": plan.rows,
        "COLUMNS": plan.columns,
        "precision": "ieee" if x.dtype == torch.float32 else "tf32",
        "num_warps": plan.warps,
    }


def narrow(x: Tensor, A: Tensor, pairs: Pairs, dropout: Dropout, out: Tensor, plan: TilePlan = LORA) -> None:
    """dropout(x) A^T of x (t d), A (r d), contiguous, into out (t padded_rank(r)); zeros in other pairs' columns."""
    count, width = x.shape
    rank = len(A)
    _narrow[(triton.cdiv(count, plan.rows),)](
        x, A, out, dropout.seed, dropout.threshold, dropout.factor, count, width, rank, pairs.bound,
        pairs.rank, x.stride(0), out.stride(0), **_settings(x, rank, dropout, plan),
    )  # fmt: skip


def narrow_gradient(
    x: Tensor, d: Tensor, rank: int, pairs: Pairs, dropout: Dropout, plan: TilePlan = LORA_GRADIENT
) -> Tensor:
    """A's gradient (r d) float32 of `narrow` for the gradient d (t padded_rank(r)) of what it wrote."""
    count, width = x.shape
    tiles = triton.cdiv(count, plan.rows)
    splits = triton.cdiv(tiles, plan.turns)
    settings = _settings(x, rank, dropout, plan)
    parts = torch.empty(splits, padded_rank(rank), width, dtype=torch.float32, device=x.device)
    _narrow_gradient[(triton.cdiv(width, plan.columns), splits)](
        x, d, parts, dropout.seed, dropout.threshold, dropout.factor, count, width, pairs.bound,
        pairs.rank, x.stride(0), d.stride(0), **settings,
    )  # fmt: skip
    return parts.sum(0)[:rank]


@triton.jit
def _mask(out_ptr, seed, threshold, width, C: tl.constexpr):
    row, cs = tl.program_id(0), tl.arange(0, C)
    keep = kept(seed, threshold, row + tl.zeros((C,), tl.int32), cs, width)
    tl.store(out_ptr + row * width + cs, keep.to(tl.int8), mask=cs < width)


def dropout_mask(rows: int, width: int, dropout: Dropout, device: torch.device) -> Tensor:
    """Which entries of (rows width) dropout keeps, as booleans; for tests."""
    out = torch.empty(rows, width, dtype=torch.int8, device=device)
    _mask[(rows,)](out, dropout.seed, dropout.threshold, width, C=triton.next_power_of_2(width))
    return out.bool()
