"""One decoding step as Triton kernels: products with their norm folded in, and all that stands between two of them.

A layer of a few rows is three launches: in_proj (its RMS norm inside), `mixer_step`, out_proj (the gated norm inside,
added to the residual); one of many rows is four, see triton_batch.

With programmatic dependent launch a kernel fetches its weights while the one before it still runs; every kernel waits
before it reads what a step has written, so the order of a step's memory is that of its launches.
Held to ops/reference.py by tests/ops. Importing needs Triton.
"""

import inspect

import torch
import triton
import triton.language as tl
from torch import Tensor

from omnimamba_cli.ops.reference import SHRINK, Last
from omnimamba_cli.ops.step_plans import MixerPlan, ProductPlan
from omnimamba_cli.ops.triton_math import softplus

_gdc_wait = getattr(getattr(tl.extra, "cuda", None), "gdc_wait", None)
# Triton 3.3 has none, and that of 3.4 cannot be called: it does not know the argument that the compiler gives it
HAS_PDL = _gdc_wait is not None and "_semantic" in inspect.signature(_gdc_wait).parameters


if HAS_PDL:

    @triton.jit
    def release(PDL: tl.constexpr):
        """Lets the next kernel start as soon as every program of this one has called this."""
        if PDL:
            tl.extra.cuda.gdc_launch_dependents()

    @triton.jit
    def wait(PDL: tl.constexpr):
        """Waits until everything that earlier kernels write is in memory."""
        if PDL:
            tl.extra.cuda.gdc_wait()

else:  # Triton looks up every name in a kernel, also those that are never called

    @triton.jit
    def release(PDL: tl.constexpr):
        """No kernel starts early."""

    @triton.jit
    def wait(PDL: tl.constexpr):
        """No kernel starts early."""


@triton.jit
def _vector_product(x_ptr, norm_ptr, w_ptr, scale_ptr, out_ptr, b, rows, eps, c: tl.constexpr, BATCH: tl.constexpr,
                    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ADD: tl.constexpr, SCALED: tl.constexpr,
                    PDL: tl.constexpr):  # fmt: skip
    """ROWS rows of weights, whole, in registers before anything else is known; then a dot product a batch row."""
    release(PDL)
    rs = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    ks = tl.arange(0, COLUMNS)
    cell = rs.to(tl.int64)[:, None] * c + ks[None]
    w = tl.load(w_ptr + cell, mask=(rs < rows)[:, None] & (ks < c)[None], other=0.0, eviction_policy="evict_first")
    norm = tl.load(norm_ptr + ks, mask=ks < c, other=0.0).to(tl.float32)
    if SCALED:
        scale = tl.load(scale_ptr + rs, mask=rs < rows, other=0.0).to(tl.float32)
    wait(PDL)
    for i in tl.static_range(BATCH):
        here = i < b
        x = tl.load(x_ptr + i * c + ks, mask=(ks < c) & here, other=0.0).to(tl.float32)
        # the norm's factor is one number a row, so it may come after the product
        rstd = 1 / tl.sqrt(tl.sum(x * x, 0) / c + eps)
        y = tl.sum(w.to(tl.float32) * (x * norm)[None], 1) * rstd
        if SCALED:
            y *= scale
        place = out_ptr + i * rows + rs
        keep = (rs < rows) & here
        if ADD:
            y += tl.load(place, mask=keep, other=0.0)
        tl.store(place, y, mask=keep)


def normed_product(
    x: Tensor,
    norm: Tensor,
    eps: float,
    weight: Tensor,
    scale: Tensor | None,
    out: Tensor,
    *,
    add: bool,
    plan: ProductPlan,
    pdl: bool = False,
) -> None:
    """Same contract as reference.normed_product, for few rows; plan is one of step_plans' "vector"."""
    b, c = x.shape
    rows = len(weight)
    launch = {"launch_pdl": True} if pdl else {}  # the interpreter does not know the word
    _vector_product[(triton.cdiv(rows, plan.rows),)](
        x, norm, weight, weight if scale is None else scale, out, b, rows, eps, c=c,
        BATCH=triton.next_power_of_2(b), ROWS=plan.rows, COLUMNS=triton.next_power_of_2(c), ADD=add,
        SCALED=scale is not None, PDL=pdl, num_warps=plan.warps, **launch,
    )  # fmt: skip


@triton.jit
def _past(ring_ptr, conv_ptr, bias_ptr, channels, mask, position, c, k: tl.constexpr):
    """The convolution's sum at some channels without its newest tap; ring_ptr (k c) holds time t in slot t % k."""
    total = tl.load(bias_ptr + channels, mask=mask, other=0.0).to(tl.float32)
    for j in tl.static_range(k - 1):
        slot = (position + 1 + j) % k
        old = tl.load(ring_ptr + slot * c + channels, mask=mask, other=0.0).to(tl.float32)
        total += old * tl.load(conv_ptr + j * c + channels, mask=mask, other=0.0).to(tl.float32)
    return total


@triton.jit
def _newest(past, proj_ptr, ring_ptr, conv_ptr, channels, mask, e, c, k: tl.constexpr):
    """SiLU of the whole sum, and the newest input as the ring will hold it."""
    new = tl.load(proj_ptr + e + channels, mask=mask, other=0.0).to(ring_ptr.dtype.element_ty)
    tap = tl.load(conv_ptr + (k - 1) * c + channels, mask=mask, other=0.0).to(tl.float32)
    total = past + new.to(tl.float32) * tap
    return total / (1 + tl.exp(-total)), new


@triton.jit
def _mixer_step(proj_ptr, ring_ptr, ssm_ptr, last_x_ptr, last_B_ptr, last_dt_ptr, position_ptr, conv_ptr,
                bias_ptr, dt_bias_ptr, A_log_ptr, D_ptr, out_ptr, norm_ptr, squares_ptr, h, e, c, r: tl.constexpr,
                p: tl.constexpr, n: tl.constexpr, k: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
                SHRINK: tl.constexpr, PENDING: tl.constexpr, LARGEST: tl.constexpr, NORM: tl.constexpr,
                CONVOLVED: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """P rows of one head's state."""
    release(PDL)
    part, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    group = head // r
    first = (head % r == 0) & (part == 0)  # of the programs that read the same B and C
    ps, ns = part * P + tl.arange(0, P), tl.arange(0, N)
    # where a tile has no edge the compiler sees that nothing is masked
    in_p = ps < p if p % P else tl.full((P,), True, tl.int1)
    in_n = ns < n if n % N else tl.full((N,), True, tl.int1)
    whole = in_p[:, None] & in_n[None]
    ssm_ptr += ((row * h + head) * p + part * P) * n  # the rest of the place in 32 bits
    cell = tl.arange(0, P)[:, None] * n + ns[None]
    # all of this is older than the step, or at least than the kernel before
    state = tl.load(ssm_ptr + cell, mask=whole, other=0.0).to(tl.float32)
    proj_ptr += row * (e + c + h)
    xs, Bs = head * p + ps, e + group * n + ns
    Cs = Bs + (h // r) * n
    if not CONVOLVED:
        position = tl.load(position_ptr + row)
        ring_ptr += row * k * c
        x_past = _past(ring_ptr, conv_ptr, bias_ptr, xs, in_p, position, c, k)
        B_past = _past(ring_ptr, conv_ptr, bias_ptr, Bs, in_n, position, c, k)
        C_past = _past(ring_ptr, conv_ptr, bias_ptr, Cs, in_n, position, c, k)
    dt_bias = tl.load(dt_bias_ptr + head).to(tl.float32)
    A = -tl.exp(tl.load(A_log_ptr + head).to(tl.float32))
    D = tl.load(D_ptr + head).to(tl.float32)
    if NORM:
        norm = tl.load(norm_ptr + xs, mask=in_p, other=0.0).to(tl.float32)
    last_x_ptr += row * e + xs
    last_B_ptr += row * ((c - e) // 2) + Bs - e
    last_dt_ptr += row * h + head
    if PENDING:
        old_dt = tl.load(last_dt_ptr)
        old_x = tl.load(last_x_ptr, mask=in_p, other=0.0).to(tl.float32) * old_dt
        old_B = tl.load(last_B_ptr, mask=in_n, other=0.0).to(tl.float32)
        left = tl.exp(old_dt * A)
    wait(PDL)
    # all that is waited for is asked for at once
    raw = tl.load(proj_ptr + e + c + head).to(tl.float32) + dt_bias
    z = tl.load(proj_ptr + xs, mask=in_p, other=0.0).to(tl.float32)
    if CONVOLVED:
        x = tl.load(proj_ptr + e + xs, mask=in_p, other=0.0).to(tl.float32)
        B = tl.load(proj_ptr + e + Bs, mask=in_n, other=0.0).to(tl.float32)
        C = tl.load(proj_ptr + e + Cs, mask=in_n, other=0.0).to(tl.float32)
    else:
        x, x_new = _newest(x_past, proj_ptr, ring_ptr, conv_ptr, xs, in_p, e, c, k)
        B, B_new = _newest(B_past, proj_ptr, ring_ptr, conv_ptr, Bs, in_n, e, c, k)
        C, C_new = _newest(C_past, proj_ptr, ring_ptr, conv_ptr, Cs, in_n, e, c, k)
    dt = softplus(raw)
    decay, new = tl.exp(dt * A), x * dt
    if PENDING:
        state = state * (left * decay) + ((old_x * decay)[:, None] * old_B[None] + new[:, None] * B[None])
        y = tl.sum(state * C[None], 1)
        if LARGEST > 0:
            state = tl.clamp(state, -LARGEST, LARGEST, propagate_nan=tl.PropagateNan.ALL)
        tl.store(ssm_ptr + cell, state, mask=whole)
    else:
        # without making the new state, which would take most of the instructions
        y = tl.sum(state * C[None], 1) * decay + new * tl.sum(B * C, 0)
        tl.store(last_x_ptr, x, mask=in_p)
        tl.store(last_B_ptr, B, mask=in_n & first)
        tl.store(last_dt_ptr, dt, mask=part == 0)
    y += D * x
    gated = tl.where(in_p, y * z / (1 + tl.exp(-z)), 0.0)
    if NORM:
        sums = tl.num_programs(0)  # of a head
        tl.store(squares_ptr + (row * h + head) * sums + part, tl.sum(gated * gated, 0))
        gated *= norm * SHRINK
    tl.store(out_ptr + row * e + xs, gated, mask=in_p)
    if not CONVOLVED:
        # the newest input goes where no program of this step reads
        ring_ptr += (position % k) * c
        tl.store(ring_ptr + xs, x_new, mask=in_p)
        tl.store(ring_ptr + Bs, B_new, mask=in_n & first)
        tl.store(ring_ptr + Cs, C_new, mask=in_n & first)


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
    plan: MixerPlan,
    norm: Tensor | None = None,
    squares: Tensor | None = None,
    convolved: bool = False,
    pdl: bool = False,
) -> None:
    """Same contract as reference.mixer_step; squares has plan.programs(p) parts for each head."""
    b, h, p, n = ssm.shape
    _, k, c = ring.shape
    assert squares is None or squares.shape[1] == h * plan.programs(p), "a program for each sum"
    largest = torch.finfo(ssm.dtype).max if ssm.dtype == torch.float16 else 0.0
    _mixer_step[(plan.programs(p), h, b)](
        proj, ring, ssm, *last, position, conv, bias, dt_bias, A_log, D, out, D if norm is None else norm,
        D if squares is None else squares, h, h * p, c, r=h // groups, p=p, n=n, k=k, P=plan.tile(p),
        N=triton.next_power_of_2(n), SHRINK=SHRINK, PENDING=pending, LARGEST=largest, NORM=norm is not None,
        CONVOLVED=convolved, PDL=pdl, num_warps=plan.warps, **({"launch_pdl": True} if pdl else {}),
    )  # fmt: skip
