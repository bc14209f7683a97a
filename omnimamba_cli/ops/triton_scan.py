"""The state-space scan as a fused Triton kernel: one program a row and head. Its gradient is triton_scan_backward.

A program walks the chunks of its sequence with the state in registers; nothing chunk by chunk is written to memory
on the way forward, and the backward pass recomputes the chunk states it needs. Held to ops/reference.py by tests/ops.
Importing needs Triton; the registry knows which calls can run here.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from omnimamba_cli.ops.packing import Packing
from omnimamba_cli.ops.train_plans import SCAN_FORWARD, SCAN_FORWARD_FLOAT32, ScanForwardPlan
from omnimamba_cli.ops.triton_decay import decays
from omnimamba_cli.ops.triton_math import first_piece, load_tile, sequence_at
from omnimamba_cli.ops.triton_scan_backward import scan_backward


@triton.jit
def _advance(state, x, dt, B, log_decay, total, precision: tl.constexpr):
    """The state (P N) after a chunk."""
    weight = tl.exp(total - log_decay) * dt  # (Q)
    into = tl.trans((x.to(tl.float32) * weight[:, None]).to(x.dtype))
    return tl.dot(into, B, state * tl.exp(total), input_precision=precision)


@triton.jit(do_not_specialize=["b", "l", "more_l"])  # lengths vary from batch to batch
def _forward(x_ptr, times_ptr, logs_ptr, B_ptr, C_ptr, D_ptr, state_ptr, y_ptr, last_ptr, b, l, more_l, h, r,
             sx, sxh, sB, sBg, sC, sCg, has_state: tl.constexpr, has_last: tl.constexpr, Q: tl.constexpr,
             P: tl.constexpr, N: tl.constexpr, p: tl.constexpr, n: tl.constexpr,
             precision: tl.constexpr):  # fmt: skip
    sequence, head = tl.program_id(0) // h, tl.program_id(0) % h
    group = head // r
    chunk = (first_piece(sequence, b, l, more_l, Q) * h + head) * Q
    row, l = sequence_at(sequence, b, l, more_l)
    x_ptr += row * sx + head * sxh
    B_ptr += row * sB + group * sBg
    C_ptr += row * sC + group * sCg
    y_ptr += (row * h + head) * p
    times_ptr += chunk
    logs_ptr += chunk
    D = tl.load(D_ptr + head).to(tl.float32)
    qs, ps, ns = tl.arange(0, Q), tl.arange(0, P), tl.arange(0, N)
    cell = (sequence.to(tl.int64) * h + head) * p * n + ps[:, None] * n + ns[None]
    whole = (ps < p)[:, None] & (ns < n)[None]
    state = tl.zeros((P, N), tl.float32)
    if has_state:
        state = tl.load(state_ptr + cell, mask=whole, other=0.0)
    for start in range(0, l, Q):
        rows = start + qs
        x = load_tile(x_ptr, rows, ps, l, sx, p)
        B, C = load_tile(B_ptr, rows, ns, l, sB, n), load_tile(C_ptr, rows, ns, l, sC, n)
        # past the end steps are zero
        dt, log_decay = tl.load(times_ptr + start * h + qs), tl.load(logs_ptr + start * h + qs)
        total = tl.load(logs_ptr + start * h + Q - 1)
        between = tl.where(qs[:, None] >= qs[None], log_decay[:, None] - log_decay[None], float("-inf"))
        scores = tl.dot(C, tl.trans(B), input_precision=precision, out_dtype=tl.float32)
        scores = scores * tl.exp(between) * dt[None]
        y = tl.dot(C, tl.trans(state.to(C.dtype)), input_precision=precision, out_dtype=tl.float32)
        y = y * tl.exp(log_decay)[:, None] + D * x.to(tl.float32)
        y = tl.dot(scores.to(x.dtype), x, y, input_precision=precision)
        tl.store(y_ptr + rows[:, None] * h * p + ps[None], y, mask=(rows < l)[:, None] & (ps < p)[None])
        state = _advance(state, x, dt, B, log_decay, total, precision)
    if has_last:
        tl.store(last_ptr + cell, state, mask=whole)


def _sizes(x: Tensor, B: Tensor) -> dict[str, object]:
    """Tile sizes: powers of two, at least the 16 of the matrix units."""
    p, n = x.shape[2], B.shape[2]
    # float32 in full: the fast path must give the reference's greedy tokens
    precision = "ieee" if x.dtype == torch.float32 else "tf32"
    up = {name: max(16, triton.next_power_of_2(v)) for name, v in (("P", p), ("N", n))}
    return {**up, "p": p, "n": n, "precision": precision}


def scan_forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    packing: Packing,
    state: Tensor | None = None,
    last: Tensor | None = None,
    plan: ScanForwardPlan | None = None,
) -> Tensor:
    """y (t h p) of reference.ssd_scan for the packed rows x (t h p), dt (t h), B and C (t g n).

    The last states of the sequences go into `last` (b h p n) float32 where they are wanted. Innermost strides of x, B
    and C are 1.
    """
    t, h, p = x.shape
    plan = plan or (SCAN_FORWARD_FLOAT32 if x.dtype == torch.float32 else SCAN_FORWARD)
    y = torch.empty(t, h, p, dtype=x.dtype, device=x.device)
    times, logs = decays(dt, A, packing, plan.chunk)
    _forward[(packing.sequences * h,)](
        x, times, logs, B, C, D, y if state is None else state, y, y if last is None else last, *packing.lengths,
        h, h // B.shape[1], *x.stride()[:2], *B.stride()[:2], *C.stride()[:2],
        has_state=state is not None, has_last=last is not None, Q=plan.chunk, **_sizes(x, B),
        num_warps=plan.warps, num_stages=plan.stages,
    )  # fmt: skip
    return y


class _Scan(torch.autograd.Function):
    """The scan of packed rows, with its gradient; returns y (t h p) and the last states (b h p n)."""

    @staticmethod
    def forward(ctx, x, dt, A, B, C, D, state, packing):  # type: ignore[no-untyped-def]  # torch's own signature
        _, h, p = x.shape
        last = torch.empty(packing.sequences, h, p, B.shape[2], dtype=torch.float32, device=x.device)
        ctx.save_for_backward(x, dt, A, B, C, D, state)
        ctx.packing = packing
        ctx.set_materialize_grads(False)  # of the last state, which in training nobody asks for
        return scan_forward(x, dt, A, B, C, D, packing, state, last), last

    @staticmethod
    def backward(ctx, dy, dlast):  # type: ignore[no-untyped-def]
        x, dt, A, B, C, D, state = ctx.saved_tensors
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        if dy is None:
            dy = torch.zeros_like(dx)
        dy = dy if dy.stride(-1) == 1 else dy.contiguous()
        dlast = None if dlast is None else dlast.contiguous()
        dB, dC = torch.empty(2, *B.shape, dtype=B.dtype, device=x.device)
        ddt, dA, dD, dstate = scan_backward(x, dt, A, B, C, D, ctx.packing, state, dy, dlast, dx, dB, dC)
        return dx, ddt.to(dt.dtype), dA.to(A.dtype), dB, dC, dD.to(D.dtype), dstate, None


def ssd_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, *, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Same contract as reference.ssd_scan, but for chunk_size: tiles have their own size here."""
    b, l = x.shape[:2]
    x, B, C = (t if t.stride(-1) == 1 else t.contiguous() for t in (x, B, C))
    B, C = B.to(x.dtype), C.to(x.dtype)
    state = None if state is None else state.float().contiguous()
    x, dt, B, C = (t.flatten(0, 1) for t in (x, dt, B, C))
    y, last = _Scan.apply(x, dt, A, B, C, D, state, Packing(b, l))
    return y.unflatten(0, (b, l)), last
