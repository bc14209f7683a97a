"""The parts of the scan that depend on dt and A alone: running log decays before the large kernels, gradients after.

The large kernels then need no sum over times, which would make warps wait for each other in every turn of a loop over
heads. Times are innermost, (chunks h q), so that a chunk is one load. Held to the reference with the scan.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from omnimamba_cli.ops.packing import Packing
from omnimamba_cli.ops.triton_math import piece_at

HEADS = 16  # of one program


@triton.jit(do_not_specialize=["b", "l", "more_l"])
def _decays(dt_ptr, A_ptr, times_ptr, logs_ptr, b, l, more_l, h, sd, sdh, Q: tl.constexpr, H: tl.constexpr):
    _, row, l, chunk = piece_at(tl.program_id(0), b, l, more_l, Q)
    qs, hs = tl.arange(0, Q), tl.program_id(1) * H + tl.arange(0, H)
    rows, here = chunk * Q + qs, hs < h
    inside = (rows < l)[:, None] & here[None]
    dt = tl.load(dt_ptr + (row + rows)[:, None] * sd + hs[None] * sdh, mask=inside, other=0.0).to(tl.float32)
    A = tl.load(A_ptr + hs, mask=here, other=0.0).to(tl.float32)
    place = (tl.program_id(0).to(tl.int64) * h + hs)[None] * Q + qs[:, None]
    keep = (qs >= 0)[:, None] & here[None]
    tl.store(times_ptr + place, dt, mask=keep)
    tl.store(logs_ptr + place, tl.cumsum(dt * A[None], 0), mask=keep)


@triton.jit(do_not_specialize=["b", "l", "more_l"])
def _decays_backward(A_ptr, times_ptr, before_ptr, from_ptr, end_ptr, to_ptr, dyx_ptr, dtotal_ptr, ddt_ptr, dA_ptr,
                     dD_ptr, b, l, more_l, h, Q: tl.constexpr, H: tl.constexpr):  # fmt: skip
    """See `decays_backward`; s is a running sum, so its gradient runs back, and the total reaches every time."""
    _, row, l, chunk = piece_at(tl.program_id(0), b, l, more_l, Q)
    qs, hs = tl.arange(0, Q), tl.program_id(1) * H + tl.arange(0, H)
    rows, here = chunk * Q + qs, hs < h
    ends = tl.program_id(0).to(tl.int64) * h + hs
    place = ends[None] * Q + qs[:, None]
    keep = (qs >= 0)[:, None] & here[None]
    dt = tl.load(times_ptr + place, mask=keep, other=0.0)
    ddt = tl.load(from_ptr + place, mask=keep, other=0.0)
    ds = tl.load(before_ptr + place, mask=keep, other=0.0) + tl.load(to_ptr + place, mask=keep, other=0.0) - ddt * dt
    dtotal = tl.load(dtotal_ptr + ends, mask=here, other=0.0)
    dtotal += tl.sum(tl.load(end_ptr + place, mask=keep, other=0.0) * dt, 0)
    da = tl.sum(ds, 0)[None] - tl.cumsum(ds, 0) + ds + dtotal[None]
    ddt += da * tl.load(A_ptr + hs, mask=here, other=0.0).to(tl.float32)[None]
    tl.store(ddt_ptr + (row + rows)[:, None] * h + hs[None], ddt, mask=(rows < l)[:, None] & here[None])
    tl.store(dA_ptr + ends, tl.sum(da * dt, 0), mask=here)
    tl.store(dD_ptr + ends, tl.sum(tl.load(dyx_ptr + place, mask=keep, other=0.0), 0), mask=here)


def decays(dt: Tensor, A: Tensor, packing: Packing, chunk: int) -> Tensor:
    """dt (t h) and its running log decay in each chunk, both (chunks h q) float32; past a sequence's end dt is 0."""
    h = dt.shape[1]
    chunks = packing.pieces(chunk)
    out = torch.empty(2, chunks, h, chunk, dtype=torch.float32, device=dt.device)
    _decays[(chunks, triton.cdiv(h, HEADS))](
        dt, A, out[0], out[1], *packing.lengths, h, *dt.stride(), Q=chunk, H=HEADS, num_warps=4
    )
    return out


def decays_backward(
    A: Tensor, times: Tensor, parts: tuple[Tensor, Tensor, Tensor, Tensor, Tensor], dtotal: Tensor, packing: Packing
) -> tuple[Tensor, Tensor, Tensor]:
    """ddt (t h), dA and dD (h) in float32, from five parts (chunks h q) that the scan's gradient kernels have written.

    The parts: the running log decay's gradient as it scales the state before the chunk; dt's, of all it feeds; of that
    what reaches the state at the chunk's end; the running log decay's as it shapes y in the chunk; dy x. dtotal
    (chunks h) is the gradient of a chunk's whole decay.
    """
    chunks, h, q = times.shape
    ddt = torch.empty(packing.rows, h, dtype=torch.float32, device=times.device)
    dA, dD = torch.empty(2, chunks, h, dtype=torch.float32, device=times.device)
    _decays_backward[(chunks, triton.cdiv(h, HEADS))](
        A, times, *parts, dtotal, ddt, dA, dD, *packing.lengths, h, Q=q, H=HEADS, num_warps=4
    )
    return ddt, dA.sum(0), dD.sum(0)
