"""Device functions that several Triton kernels use. Importing needs Triton."""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def softplus(x):
    """log(1 + exp(x)) to the last digit, also where 1 + exp(x) rounds; linear above 20 as in PyTorch."""
    u = tl.exp(tl.minimum(x, 20.0))
    grown = 1 + u
    # for small u the rounding of 1 + u is divided out again
    log = tl.log(grown) * (u / tl.where(grown == 1, 1.0, grown - 1))
    return tl.where(x > 20, x, tl.where(grown == 1, u, log))


@triton.jit
def load_tile(ptr, rows, columns, l, stride, size: tl.constexpr):
    """Times `rows` of some neighbouring channels, of `size`; zeros from time l on. stride: between two times."""
    mask = (rows < l)[:, None]
    if columns.shape[0] != size:
        mask = mask & (columns < size)[None]
    return tl.load(ptr + rows[:, None] * stride + columns[None], mask=mask, other=0.0)


@triton.jit
def sequence_at(i, b, l, more_l):
    """First row and rows of sequence i of a packing, see ops/packing.py."""
    later = i >= b
    first = tl.where(later, b * l + (i - b) * more_l, i * l).to(tl.int64)
    return first, tl.where(later, more_l, l)


@triton.jit
def piece_at(i, b, l, more_l, size):
    """Piece i of a packing whose sequences are each cut every `size` rows: the number, first row and rows of its
    sequence, and which of the sequence's pieces it is."""
    early = b * tl.cdiv(l, size)
    later = i >= early
    length = tl.where(later, more_l, l)
    i = tl.where(later, i - early, i)
    pieces = tl.cdiv(length, size)
    sequence = i // pieces
    first = (tl.where(later, b * l, 0) + sequence * length).to(tl.int64)
    return (sequence + tl.where(later, b, 0)).to(tl.int64), first, length, i % pieces


@triton.jit
def first_piece(i, b, l, more_l, size):
    """The number of sequence i's first piece in the order of piece_at."""
    pieces, more = tl.cdiv(l, size), tl.cdiv(more_l, size)
    return tl.where(i >= b, b * pieces + (i - b) * more, i * pieces).to(tl.int64)


def as_rows(x: Tensor) -> Tensor:
    """(... c) as (rows c) without a copy where the rows are evenly spaced."""
    try:
        flat = x.view(-1, x.shape[-1])
    except RuntimeError:
        flat = x.reshape(-1, x.shape[-1])
    return flat if flat.stride(-1) == 1 else flat.contiguous()
