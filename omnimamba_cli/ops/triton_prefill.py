"""Reading a whole prefix as few Triton kernels, for inference: four of ours and two products a layer.

`add_norm`, the product in, `conv_dt`, `scan`, `gate_norm`, the product out. Nothing is kept for gradients. The scan
cuts the sequence into segments that run at the same time: each first finds what it leaves behind, then all walk once
more with the right state to begin with. Held to ops/reference.py by tests/ops. Importing needs Triton.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from omnimamba_cli.ops.chips import is_large
from omnimamba_cli.ops.step_plans import ScanPlan, scan_plan
from omnimamba_cli.ops.triton_math import softplus

ROWS, COLUMNS = 32, 64  # a convolution's tile: time, channels
CAST = 4096  # numbers of a program
PROGRAMS = 512  # of the scan: about four for each multiprocessor


@triton.jit
def _add_norm(residual_ptr, y_ptr, norm_ptr, out_ptr, c, eps, ADD: tl.constexpr, C: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cs = tl.arange(0, C)
    x = tl.load(residual_ptr + row * c + cs, mask=cs < c, other=0.0)
    if ADD:
        x += tl.load(y_ptr + row * c + cs, mask=cs < c, other=0.0).to(tl.float32)
        tl.store(residual_ptr + row * c + cs, x, mask=cs < c)
    norm = tl.load(norm_ptr + cs, mask=cs < c, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * c + cs, x * norm / tl.sqrt(tl.sum(x * x, 0) / c + eps), mask=cs < c)


def add_norm(residual: Tensor, y: Tensor | None, norm: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """residual (b l d) float32 += y, in place; returns its RMS norm in `dtype`."""
    b, l, d = residual.shape
    out = torch.empty(b, l, d, dtype=dtype, device=residual.device)
    _add_norm[(b * l,)](
        residual, residual if y is None else y, norm, out, d, eps, ADD=y is not None, C=triton.next_power_of_2(d)
    )
    return out


@triton.jit
def _cast(x_ptr, out_ptr, size, BLOCK: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + places, tl.load(x_ptr + places, mask=places < size), mask=places < size)


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in `dtype`, itself if it is. PyTorch's own conversion of 16 bits and fewer takes three times as long."""
    if x.dtype == dtype:
        return x
    out = torch.empty_like(x, dtype=dtype)
    _cast[(triton.cdiv(x.numel(), CAST),)](x, out, x.numel(), BLOCK=CAST)
    return out


@triton.jit
def _conv_dt(zxBCdt_ptr, conv_ptr, bias_ptr, dt_bias_ptr, xBC_ptr, dt_ptr, ring_ptr, l, e, c, h,
             k: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """A tile of the convolution, or beyond its channels a tile of dt."""
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    rows = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    tiles = tl.cdiv(c, COLUMNS)
    zxBCdt_ptr += row * l * (e + c + h) + e
    if tile < tiles:
        cs = tile * COLUMNS + tl.arange(0, COLUMNS)
        here = (cs < c)[None]
        total = tl.zeros((ROWS, COLUMNS), tl.float32) + tl.load(bias_ptr + cs, mask=cs < c, other=0.0).to(tl.float32)
        for j in tl.static_range(k):
            at = rows - (k - 1) + j
            inside = ((at >= 0) & (at < l))[:, None] & here
            x = tl.load(zxBCdt_ptr + at[:, None].to(tl.int64) * (e + c + h) + cs[None], mask=inside, other=0.0)
            total += x.to(tl.float32) * tl.load(conv_ptr + j * c + cs, mask=cs < c, other=0.0).to(tl.float32)[None]
            if j == k - 1:
                last = (rows >= l - (k - 1)) & (rows < l)
                slot = (row * k + rows % k)[:, None] * c + cs[None]
                tl.store(ring_ptr + slot, x, mask=last[:, None] & here)
        place = (row * l + rows)[:, None] * c + cs[None]
        tl.store(xBC_ptr + place, total / (1 + tl.exp(-total)), mask=(rows < l)[:, None] & here)
    else:
        hs = (tile - tiles) * COLUMNS + tl.arange(0, COLUMNS)
        inside = (rows < l)[:, None] & (hs < h)[None]
        raw = tl.load(zxBCdt_ptr + rows[:, None].to(tl.int64) * (e + c + h) + c + hs[None], mask=inside, other=0.0)
        raw = raw.to(tl.float32) + tl.load(dt_bias_ptr + hs, mask=hs < h, other=0.0).to(tl.float32)[None]
        tl.store(dt_ptr + (row * l + rows)[:, None] * h + hs[None], softplus(raw), mask=inside)


def conv_dt(zxBCdt: Tensor, conv: Tensor, bias: Tensor, dt_bias: Tensor, ring: Tensor) -> tuple[Tensor, Tensor]:
    """in_proj's rows (b l e+c+h) from time 0 to xBC (b l c) after convolution and SiLU, and dt (b l h) float32.

    conv (k c), bias (c), dt_bias (h). The last k-1 inputs are put into ring (b k c), time t in slot t % k.
    """
    b, l, width = zxBCdt.shape
    _, k, c = ring.shape
    h = len(dt_bias)
    xBC = torch.empty(b, l, c, dtype=zxBCdt.dtype, device=zxBCdt.device)
    dt = torch.empty(b, l, h, dtype=torch.float32, device=zxBCdt.device)
    _conv_dt[(b, triton.cdiv(c, COLUMNS) + triton.cdiv(h, COLUMNS), triton.cdiv(l, ROWS))](
        zxBCdt, conv, bias, dt_bias, xBC, dt, ring, l, width - c - h, c, h, k=k, ROWS=ROWS, COLUMNS=COLUMNS
    )
    return xBC, dt


@triton.jit
def _tile(ptr, rows, columns, l, stride, size):
    """Times `rows` of some neighbouring channels; zeros past the end."""
    mask = (rows < l)[:, None] & (columns < size)[None]
    return tl.load(ptr + rows[:, None].to(tl.int64) * stride + columns[None], mask=mask, other=0.0)


@triton.jit
def _segment_states(xBC_ptr, dt_ptr, A_log_ptr, states_ptr, decays_ptr, l, segment, h, r, e, c, p: tl.constexpr,
                    n: tl.constexpr, Q: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
                    precision: tl.constexpr):  # fmt: skip
    """The state after a segment that began with a zero state, and the log decay of a state over the segment."""
    row, head, number = (tl.program_id(0) // h).to(tl.int64), tl.program_id(0) % h, tl.program_id(1)
    xBC_ptr += row * l * c
    dt_ptr += row * l * h + head
    A = -tl.exp(tl.load(A_log_ptr + head).to(tl.float32))
    qs, ps, ns = tl.arange(0, Q), tl.arange(0, P), tl.arange(0, N)
    state = tl.zeros((P, N), tl.float32)
    decay = 0.0
    for start in range(number * segment, (number + 1) * segment, Q):
        rows = start + qs
        x = _tile(xBC_ptr + head * p, rows, ps, l, c, p)
        B = _tile(xBC_ptr + e + head // r * n, rows, ns, l, c, n)
        dt = tl.load(dt_ptr + rows * h, mask=rows < l, other=0.0)
        log_decay = tl.cumsum(dt * A, 0)
        total = tl.sum(dt * A, 0)
        xs = tl.trans((x.to(tl.float32) * (tl.exp(total - log_decay) * dt)[:, None]).to(x.dtype))
        state = state * tl.exp(total) + tl.dot(xs, B, input_precision=precision, out_dtype=tl.float32)
        decay += total
    place = (row * h + head) * tl.num_programs(1) + number
    tl.store(states_ptr + (place * P + ps[:, None]) * N + ns[None], state)
    tl.store(decays_ptr + place, decay)


@triton.jit
def _segment_outputs(xBC_ptr, dt_ptr, A_log_ptr, D_ptr, states_ptr, decays_ptr, y_ptr, ssm_ptr, l, segment, h, r, e, c,
                     p: tl.constexpr, n: tl.constexpr, Q: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
                     LARGEST: tl.constexpr, precision: tl.constexpr):  # fmt: skip
    row, head, number = (tl.program_id(0) // h).to(tl.int64), tl.program_id(0) % h, tl.program_id(1)
    xBC_ptr += row * l * c
    dt_ptr += row * l * h + head
    A = -tl.exp(tl.load(A_log_ptr + head).to(tl.float32))
    D = tl.load(D_ptr + head).to(tl.float32)
    qs, ps, ns = tl.arange(0, Q), tl.arange(0, P), tl.arange(0, N)
    state = tl.zeros((P, N), tl.float32)
    for i in range(number):
        place = (row * h + head) * (tl.num_programs(1) - 1) + i
        left = tl.load(states_ptr + (place * P + ps[:, None]) * N + ns[None])
        state = state * tl.exp(tl.load(decays_ptr + place)) + left
    for start in range(number * segment, tl.minimum((number + 1) * segment, l), Q):
        rows = start + qs
        x = _tile(xBC_ptr + head * p, rows, ps, l, c, p)
        B = _tile(xBC_ptr + e + head // r * n, rows, ns, l, c, n)
        C = _tile(xBC_ptr + e + (h // r + head // r) * n, rows, ns, l, c, n)
        dt = tl.load(dt_ptr + rows * h, mask=rows < l, other=0.0)
        log_decay = tl.cumsum(dt * A, 0)
        total = tl.sum(dt * A, 0)
        # masked before exp: above the diagonal it would overflow
        between = tl.where(qs[:, None] >= qs[None], log_decay[:, None] - log_decay[None], float("-inf"))
        scores = tl.dot(C, tl.trans(B), input_precision=precision, out_dtype=tl.float32)
        scores = (scores * tl.exp(between) * dt[None]).to(x.dtype)
        y = tl.dot(C, tl.trans(state.to(C.dtype)), input_precision=precision, out_dtype=tl.float32)
        y = y * tl.exp(log_decay)[:, None] + D * x.to(tl.float32)
        y = tl.dot(scores, x, y, input_precision=precision)
        place = (row * l + rows)[:, None] * e + head * p + ps[None]
        tl.store(y_ptr + place, y, mask=(rows < l)[:, None] & (ps < p)[None])
        xs = tl.trans((x.to(tl.float32) * (tl.exp(total - log_decay) * dt)[:, None]).to(x.dtype))
        state = state * tl.exp(total) + tl.dot(xs, B, input_precision=precision, out_dtype=tl.float32)
    if number == tl.num_programs(1) - 1:
        if LARGEST > 0:
            state = tl.clamp(state, -LARGEST, LARGEST, propagate_nan=tl.PropagateNan.ALL)
        cell = ((row * h + head) * p + ps[:, None]) * n + ns[None]
        tl.store(ssm_ptr + cell, state, mask=(ps < p)[:, None] & (ns < n)[None])


def scan(
    xBC: Tensor, dt: Tensor, A_log: Tensor, D: Tensor, ssm: Tensor, *, groups: int, plan: ScanPlan | None = None
) -> Tensor:
    """reference.ssd_scan from no state: xBC (b l c), dt (b l h) to y (b l e); the last state goes to ssm (b h p n)."""
    b, l, c = xBC.shape
    _, h, p, n = ssm.shape
    half = xBC.dtype != torch.float32
    plan = plan or scan_plan(b, l, xBC.dtype, large=is_large(xBC.device))
    chunk = plan.chunk
    segments = max(1, min(plan.segments, PROGRAMS // (b * h), l // (2 * chunk)))
    segment = triton.cdiv(triton.cdiv(l, segments), chunk) * chunk
    segments = triton.cdiv(l, segment)
    P, N = (max(16, triton.next_power_of_2(v)) for v in (p, n))
    states = torch.empty(b * h * (segments - 1), P, N, dtype=torch.float32, device=xBC.device)
    decays = torch.empty(b * h * (segments - 1), dtype=torch.float32, device=xBC.device)
    # float32 in full: the fast path must give the reference's greedy tokens
    sizes = {"p": p, "n": n, "Q": chunk, "P": P, "N": N, "precision": "tf32" if half else "ieee"}
    sizes |= {"num_warps": plan.warps, "num_stages": plan.stages}
    if segments > 1:
        _segment_states[(b * h, segments - 1)](
            xBC, dt, A_log, states, decays, l, segment, h, h // groups, h * p, c, **sizes
        )
    y = torch.empty(b, l, h * p, dtype=xBC.dtype, device=xBC.device)
    largest = torch.finfo(ssm.dtype).max if ssm.dtype == torch.float16 else 0.0
    _segment_outputs[(b * h, segments)](
        xBC, dt, A_log, D, states, decays, y, ssm, l, segment, h, h // groups, h * p, c, LARGEST=largest, **sizes
    )
    return y


@triton.jit
def _gate_norm(y_ptr, z_ptr, norm_ptr, e, width, eps, E: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    es = tl.arange(0, E)
    y = tl.load(y_ptr + row * e + es, mask=es < e, other=0.0).to(tl.float32)
    z = tl.load(z_ptr + row * width + es, mask=es < e, other=0.0).to(tl.float32)
    norm = tl.load(norm_ptr + es, mask=es < e, other=0.0).to(tl.float32)
    x = y * z / (1 + tl.exp(-z))
    tl.store(y_ptr + row * e + es, x * norm / tl.sqrt(tl.sum(x * x, 0) / e + eps), mask=es < e)


def gate_norm(y: Tensor, zxBCdt: Tensor, norm: Tensor, eps: float) -> Tensor:
    """reference.gated_rms_norm of y (b l e), in place, with the gate in in_proj's first e columns."""
    b, l, e = y.shape
    _gate_norm[(b * l,)](y, zxBCdt, norm, e, zxBCdt.shape[2], eps, E=triton.next_power_of_2(e), num_warps=8)
    return y
