"""The reference's scan and convolution for a CPU and without gradients: the same sums in fewer passes over memory.

Plain PyTorch. Intermediate results are overwritten, which the reference must keep for its backward pass.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

NEAR = 1 << 18  # elements of a tensor that stay in a core's own caches
CHUNK = 39  # positions; a head's chunk of squares then stays in the nearest cache, and 77 is two of them


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor, history: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See reference.causal_conv; for float32 and float64."""
    b, l, c = x.shape
    k = weight.shape[1]
    if history is None:
        history = x.new_zeros(b, k - 1, c)
    window = torch.cat([history.to(x.dtype), x], dim=1)  # (b k-1+l c)
    y = x.new_empty(b, l, c)
    for rows in _slices(b, l * c):
        part = torch.addcmul(bias, window[rows, :l], weight[:, 0], out=y[rows])
        for i in range(1, k):
            part.addcmul_(window[rows, i : i + l], weight[:, i])
        F.silu(part, inplace=True)
    return y, window[:, l:]


def ssd_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, *, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """See reference.ssd_scan."""
    b, l, h, p = x.shape
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    last = x.new_zeros(b, h, p, B.shape[-1], dtype=wide) if state is None else state.to(wide, copy=True)
    with torch.autocast(x.device.type, enabled=False):  # it would run the sums in half precision
        for rows in _slices(b, h * min(l, CHUNK) * (p + CHUNK)):
            _scan(x[rows], dt[rows], A, B[rows], C[rows], D, last[rows], y[rows])
    return y, last


def _slices(rows: int, elements: int) -> Iterator[slice]:
    """Slices of `rows` rows, each with as many rows of so many elements as stay in the caches."""
    size = max(1, NEAR // elements)
    return (slice(start, start + size) for start in range(0, rows, size))


def _scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor, out: Tensor) -> None:
    """ssd_scan of some rows: writes y into `out` (b l h p), updates the state (b h p n)."""
    b, l, h, p = x.shape
    g, n = B.shape[2:]
    r = h // g  # heads a group
    wide = state.dtype
    step = dt.to(wide)
    # heads first, so that every product is one of a batch of matrices
    xs = (x.to(wide) * step[..., None]).transpose(1, 2).reshape(b * h, l, p)
    Bs, Cs = (t.to(wide).transpose(1, 2).reshape(b * g, l, n) for t in (B, C))
    log_decay = (step * A.to(wide)).transpose(1, 2).reshape(b * h, l)
    last = state.view(b * h, p, n)
    y = torch.empty(b * h, l, p, dtype=wide, device=x.device)
    for start in range(0, l, CHUNK):
        part = slice(start, min(start + CHUNK, l))
        sums = log_decay[:, part].cumsum(1)  # (b*h q), from the chunk's start
        y[:, part] = _chunk(xs[:, part], Bs[:, part], Cs[:, part], sums, last, (b, g, r))
    out.copy_(torch.addcmul(y.view(b, h, l, p).transpose(1, 2), x.to(wide), D.to(wide)[:, None]))


def _chunk(xs: Tensor, Bs: Tensor, Cs: Tensor, sums: Tensor, state: Tensor, sizes: tuple[int, int, int]) -> Tensor:
    """One chunk's y (b*h q p); updates the state (b*h p n) from the chunk's start to its end.

    xs = dt x (b*h q p); Bs, Cs (b*g q n); sums (b*h q), logarithms of the decay up to each position; sizes b, g, h/g.
    """
    b, g, r = sizes
    q, p, n = xs.shape[1], xs.shape[2], Bs.shape[2]
    above = torch.full((q, q), -torch.inf, dtype=sums.dtype, device=sums.device).triu_(1)
    weights = sums[:, :, None] - sums[:, None, :]  # (b*h q q)
    weights.add_(above).exp_()  # masked before exp: above the diagonal it would overflow
    weights.view(b * g, r, q, q).mul_(torch.bmm(Cs, Bs.mT)[:, None])
    y = torch.bmm(weights, xs)
    from_state = Cs[:, None] * sums.exp().view(b * g, r, q, 1)  # (b*g r q n)
    y.baddbmm_(from_state.view(b * g * r, q, n), state.mT)
    total = sums[:, -1:]
    to_end = xs * (total - sums).exp_()[..., None]  # (b*h q p)
    grown = torch.bmm(to_end.view(b * g, r, q, p).transpose(2, 3).reshape(b * g, r * p, q), Bs)
    state.mul_(total.exp()[..., None]).add_(grown.view(b * g * r, p, n))
    return y
