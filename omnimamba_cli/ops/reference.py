"""What every faster backend must equal: plain PyTorch, any device, any length, differentiable.

Is itself tested against a float64 step-by-step recurrence in tests/ops. Computes in float32, or in float64 if given it.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def _wide(x: Tensor) -> torch.dtype:
    """The dtype of sums: float32, or float64 for float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None = None) -> Tensor:
    """x (... c) over its root mean square, times weight (c).

    Computed in float32 (float64 for float64) and returned in `dtype`, by default the one it was computed in.
    """
    wide = _wide(x)
    return F.rms_norm(x.to(wide), (x.shape[-1],), weight.to(wide), eps).to(dtype or wide)


def gated_rms_norm(y: Tensor, z: Tensor, weight: Tensor, eps: float) -> Tensor:
    """norm(y * silu(z)) for y, z (... e), weight (e): the gate comes before the norm. In y's dtype."""
    wide = _wide(y)
    return rms_norm(y.to(wide) * F.silu(z.to(wide)), weight, eps).to(y.dtype)


def summed_cross_entropy(logits: Tensor, targets: Tensor, ignored: int) -> Tensor:
    """Cross-entropy of logits (m v) and targets (m) int64, summed in float32; rows with the ignored target are 0."""
    # float32: a sum over many small exponentials in bf16 is off by percents
    return F.cross_entropy(logits.float(), targets, reduction="sum", ignore_index=ignored)


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor, history: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Depthwise causal convolution over time, then SiLU.

    x (b l c); weight (c k), its last tap is the present; bias (c); history (b k-1 c), the inputs before x, zeros
    if absent. Returns y (b l c) in x's dtype and the new history (b k-1 c).
    """
    b, l, c = x.shape
    k = weight.shape[1]
    if history is None:
        history = x.new_zeros(b, k - 1, c)
    window = torch.cat([history.to(x.dtype), x], dim=1)  # (b k-1+l c)
    wide = _wide(x)
    taps = weight.to(wide).unbind(1)
    y = bias.to(wide)
    for i, tap in enumerate(taps):
        y = y + window[:, i : i + l].to(wide) * tap
    return F.silu(y).to(x.dtype), window[:, l:]


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    *,
    chunk_size: int,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The state-space dual form over a whole sequence, chunk by chunk, in memory linear in the chunk.

    x (b l h p); dt (b l h) > 0; A (h) < 0; B, C (b l g n); D (h); state (b h p n), zeros if absent.
    Returns y (b l h p) in x's dtype and the last state (b h p n) in float32 (float64 for float64).
    h(t) = exp(dt A) h(t-1) + dt B x, y = C h + D x; within a chunk the same as masked attention.
    Source: Dao & Gu 2024, arXiv:2405.21060, sections 3 and 6.
    """
    with torch.autocast(x.device.type, enabled=False):  # it would run the sums in half precision
        return _ssd_scan(x, dt, A, B, C, D, chunk_size, state)


def _ssd_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, chunk_size: int, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    b, l, h, p = x.shape
    g, n = B.shape[2:]
    r = h // g  # heads a group
    wide = _wide(x)
    if state is None:
        state = x.new_zeros(b, h, p, n, dtype=wide)
    state = state.to(wide).view(b, g, r, p, n)
    A = A.to(wide)
    outputs = []
    for start in range(0, l, chunk_size):
        part = slice(start, min(start + chunk_size, l))
        step = dt[:, part].to(wide)  # (b q h)
        xs = (x[:, part].to(wide) * step[..., None]).unflatten(2, (g, r))  # (b q g r p)
        Bs, Cs = B[:, part].to(wide), C[:, part].to(wide)  # (b q g n)
        log_decay = (step * A).cumsum(1).unflatten(2, (g, r)).movedim(1, -1)  # (b g r q), from the chunk's start

        # what each position of the chunk gets from the ones up to it
        q = step.shape[1]
        causal = torch.ones(q, q, dtype=torch.bool, device=x.device).tril()
        # masked before exp: above the diagonal it would overflow, and inf * 0 is NaN
        between = (log_decay[..., :, None] - log_decay[..., None, :]).masked_fill(~causal, -torch.inf).exp()
        scores = torch.einsum("bign,bjgn->bgij", Cs, Bs)[:, :, None] * between  # (b g r q q)
        y = torch.einsum("bgrij,bjgrp->bigrp", scores, xs)  # (b q g r p)

        # what the chunk gets from everything before it, and what it leaves behind
        y = y + torch.einsum("bign,bgrpn,bgri->bigrp", Cs, state, log_decay.exp())
        to_end = (log_decay[..., -1:] - log_decay).exp()  # (b g r q)
        state = state * log_decay[..., -1, None, None].exp() + torch.einsum("bjgn,bgrj,bjgrp->bgrpn", Bs, to_end, xs)
        outputs.append(y.flatten(2, 3))
    y = torch.cat(outputs, dim=1) + x.to(wide) * D.to(wide)[:, None]
    return y.to(x.dtype), state.view(b, h, p, n)


def ssd_step(state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """One decoding step of the state-space dual form.

    state (b h p n) float32, updated in place; x (b h p); dt (b h) > 0; A (h) < 0; B, C (b g n); D (h).
    Returns y (b h p) in x's dtype. Source: Dao & Gu 2024, arXiv:2405.21060, recurrent form.
    """
    wide = state.dtype
    b, h, p, n = state.shape
    g = B.shape[1]
    xs, step = x.to(wide), dt.to(wide)
    state.mul_((step * A.to(wide)).exp()[..., None, None])
    by_group = state.view(b, g, h // g * p, n)
    grown = (xs * step[..., None]).view(b, g, -1, 1)  # (b g h/g*p 1)
    by_group.addcmul_(grown, B.to(wide)[:, :, None])
    # on a CPU a product and a sum beat a batched matrix-vector product by half
    y = (by_group * C.to(wide)[:, :, None]).sum(-1).view(b, h, p)
    return (y + xs * D.to(wide)[:, None]).to(x.dtype)


def normed_product(
    x: Tensor, norm: Tensor, eps: float, weight: Tensor, scale: Tensor | None, out: Tensor, *, add: bool
) -> None:
    """out (b r) = rms_norm(x) W^T, or += with `add`. x (b c); norm (c); W is weight (r c), times scale (r) if given.

    With a scale the weights may be int8 or float8. Sums in float32 (float64 for float64).
    """
    wide = _wide(x)
    y = F.linear(rms_norm(x, norm, eps), weight.to(wide))
    if scale is not None:
        y = y * scale.to(wide)
    if add:
        out += y
    else:
        out.copy_(y)


class Convolution(NamedTuple):
    """One step of the causal convolution, for `product` to run on some neighbouring channels of its result."""

    ring: Tensor  # (b k c), the last inputs, time t in slot t % k; updated in place
    position: Tensor  # (b) int64, the token's place in its sequence
    taps: Tensor  # (k c), the last is the present
    bias: Tensor  # (c)
    first: int  # the first of its channels in the product


def convolve(x: Tensor, how: Convolution) -> Tensor:
    """One convolution step and SiLU on channels of x (b r): returns them (b c), and puts the input into the ring."""
    wide = _wide(x)
    _, k, c = how.ring.shape
    rows, times = torch.arange(len(x), device=x.device), torch.arange(k, device=x.device)
    how.ring[rows, how.position % k] = x[:, how.first : how.first + c].to(how.ring.dtype)
    oldest_first = (how.position[:, None] + 1 + times) % k  # (b k)
    window = how.ring[rows[:, None], oldest_first].to(wide)
    return F.silu((window * how.taps.to(wide)).sum(1) + how.bias.to(wide))


SHRINK = 2.0**-4  # of what waits for 1 / rms: float16 ends at 65,504, and a power of two costs no digits


class Squares(NamedTuple):
    """The unfinished half of an RMS norm: x was multiplied by the norm's weight and SHRINK, but not yet by 1 / rms.

    1 / rms is one number a row, so it can be multiplied in after the product that follows the norm.
    """

    parts: Tensor  # (b s), partial sums of squares before the weight; a row's parts add up to its whole sum
    columns: int  # values in a row
    eps: float

    def factor(self) -> Tensor:
        """What each row (b 1) lacks: 1 / rms, and what was shrunk."""
        return torch.rsqrt(self.parts.sum(1, keepdim=True) / self.columns + self.eps) / SHRINK


def product(
    x: Tensor, weight: Tensor, scale: Tensor | None, out: Tensor, *, convolution: Convolution | None = None
) -> None:
    """Fill out (s b r) with parts whose sum over s is x W^T. x (b c); W is weight (r c), times scale (r) if given.

    With a scale the weights may be int8 or float8. Sums in float32 (float64 for float64). With a convolution (and one
    part) some channels of the product go through it.
    """
    wide = _wide(x)
    y = F.linear(x.to(wide), weight.to(wide))
    y = y if scale is None else y * scale.to(wide)
    if convolution is not None:
        y[:, convolution.first : convolution.first + len(convolution.bias)] = convolve(y, convolution)
    out.zero_()
    out[0] = y


def join_norm(residual: Tensor, parts: Tensor | None, squares: Squares, norm: Tensor, eps: float, out: Tensor) -> None:
    """residual (b d) += the sum of parts (s b d) times squares.factor(); then out (b d) = rms_norm(residual).

    norm (d) is the norm's weight. Without parts the residual stays as it is.
    """
    if parts is not None:
        residual += parts.to(residual.dtype).sum(0) * squares.factor().to(residual.dtype)
    out.copy_(rms_norm(residual, norm, eps))


class Last(NamedTuple):
    """The token before the present one, while the state does not hold it: the state is written every second time only.

    To add a token to a state that was just read is little work; to write it takes as long as to read it.
    """

    x: Tensor  # (b e), after the convolution
    B: Tensor  # (b gn), after the convolution
    dt: Tensor  # (b h) float32, after softplus

    def layer(self, i: int) -> "Last":
        """One layer's, where the tensors have a dimension for layers in front."""
        return Last(self.x[i], self.B[i], self.dt[i])


def mixer_step(
    proj: Tensor,
    ring: Tensor,
    ssm: Tensor,
    last: Last,
    position: Tensor,
    conv: Tensor,
    bias: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    out: Tensor,
    *,
    groups: int,
    pending: bool,
    norm: Tensor | None = None,
    squares: Tensor | None = None,
    convolved: bool = False,
) -> None:
    """One token between in_proj and out_proj: convolution, state and gate, without the norm after the gate.

    proj (b e+c+h) is in_proj's output: z, x B C, dt. ring, position, conv and bias are those of Convolution, and are
    ignored where proj is `convolved` already. ssm (b h p n) is the state. If `pending`, it lacks the token in `last`;
    then that and the present one are added to ssm, which may be narrower than the sums. Else ssm stays, and the present
    token is written to `last`.
    dt_bias, A_log, D (h). Writes y * silu(z) to out (b e). With norm (e), writes that times norm and SHRINK, and
    the sums of squares before both to squares (b s), see Squares.
    """
    b, h, p, n = ssm.shape
    e = h * p
    wide = _wide(proj)
    z, xBC, dt = proj.to(wide).split([e, ring.shape[2], h], dim=-1)
    if not convolved:
        xBC = convolve(proj.to(wide), Convolution(ring, position, conv, bias, e))
    x, B, C = xBC.split([e, groups * n, groups * n], dim=-1)
    dt = F.softplus(dt + dt_bias.to(wide))
    state, A, by_group = ssm.to(wide, copy=True), -A_log.to(wide).exp(), (b, groups, n)
    if pending:
        old_x, old_B, old_dt = (old.to(wide) for old in last)
        ssd_step(state, old_x.view(b, h, p), old_dt, A, old_B.view(by_group), old_B.view(by_group), D)
    y = ssd_step(state, x.view(b, h, p), dt, A, B.view(by_group), C.view(by_group), D)
    if pending:
        if ssm.dtype == torch.float16:
            state = state.clamp(-torch.finfo(ssm.dtype).max, torch.finfo(ssm.dtype).max)
        ssm.copy_(state)
    else:
        for mine, new in zip(last, (x, B, dt), strict=True):
            mine.copy_(new)
    gated = y.flatten(1) * F.silu(z)
    if norm is not None and squares is not None:
        squares.zero_()
        squares[:, 0] = gated.square().sum(1)
        gated = gated * norm.to(wide) * SHRINK
    out.copy_(gated)
