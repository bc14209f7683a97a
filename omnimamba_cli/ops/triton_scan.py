"""The state-space scan as two fused Triton kernels, forward and backward: one program a row and head.

A program walks the chunks of its sequence with the state in registers; nothing chunk by chunk is written to memory
on the way forward, and the backward recomputes the chunk states it needs. Held to ops/reference.py by tests/ops.
Importing needs Triton; `refusal` says why a call cannot run here.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 32  # rows a tile of the matrix units; the result does not depend on it
FORWARD_WARPS, BACKWARD_WARPS = 4, 4


@triton.jit
def _chunk(x_ptr, dt_ptr, B_ptr, C_ptr, A, start, l, sx, sdt, sB, sC, Q: tl.constexpr, P: tl.constexpr,
           N: tl.constexpr, p: tl.constexpr, n: tl.constexpr):  # fmt: skip
    """One chunk's x (Q P), dt (Q), B, C (Q N) and its running log decay (Q); rows past l are zero steps."""
    rows, ps, ns = start + tl.arange(0, Q), tl.arange(0, P), tl.arange(0, N)
    inside = rows < l
    x = tl.load(x_ptr + rows[:, None] * sx + ps[None], mask=inside[:, None] & (ps < p)[None], other=0.0)
    dt = tl.load(dt_ptr + rows * sdt, mask=inside, other=0.0).to(tl.float32)
    B = tl.load(B_ptr + rows[:, None] * sB + ns[None], mask=inside[:, None] & (ns < n)[None], other=0.0)
    C = tl.load(C_ptr + rows[:, None] * sC + ns[None], mask=inside[:, None] & (ns < n)[None], other=0.0)
    return x, dt, B, C, tl.cumsum(dt * A, 0)


@triton.jit
def _advance(state, x, dt, B, log_decay, total, precision: tl.constexpr):
    """The state (P N) after a chunk."""
    weight = tl.exp(total - log_decay) * dt  # (Q)
    return state * tl.exp(total) + tl.dot(
        tl.trans((x * weight[:, None]).to(x.dtype)), B, input_precision=precision, out_dtype=tl.float32
    )


@triton.jit
def _forward(x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, state_ptr, y_ptr, last_ptr, l, h, r,
             sxb, sxl, sxh, sdb, sdl, sdh, sBb, sBl, sBg, sCb, sCl, sCg, has_state: tl.constexpr,
             Q: tl.constexpr, P: tl.constexpr, N: tl.constexpr, p: tl.constexpr, n: tl.constexpr,
             precision: tl.constexpr):  # fmt: skip
    row, head = (tl.program_id(0) // h).to(tl.int64), tl.program_id(0) % h
    group = head // r
    x_ptr += row * sxb + head * sxh
    dt_ptr += row * sdb + head * sdh
    B_ptr += row * sBb + group * sBg
    C_ptr += row * sCb + group * sCg
    y_ptr += (row * l * h + head) * p
    A, D = tl.load(A_ptr + head).to(tl.float32), tl.load(D_ptr + head).to(tl.float32)
    qs, ps, ns = tl.arange(0, Q), tl.arange(0, P), tl.arange(0, N)
    cell = (row * h + head) * p * n + ps[:, None] * n + ns[None]
    whole = (ps < p)[:, None] & (ns < n)[None]
    state = tl.zeros((P, N), tl.float32)
    if has_state:
        state = tl.load(state_ptr + cell, mask=whole, other=0.0)
    for start in range(0, l, Q):
        x, dt, B, C, log_decay = _chunk(x_ptr, dt_ptr, B_ptr, C_ptr, A, start, l, sxl, sdl, sBl, sCl, Q, P, N, p, n)
        total = tl.sum(dt * A, 0)
        between = tl.where(qs[:, None] >= qs[None], log_decay[:, None] - log_decay[None], float("-inf"))
        scores = tl.dot(C, tl.trans(B), input_precision=precision, out_dtype=tl.float32)
        scores = scores * tl.exp(between) * dt[None]
        y = tl.dot(scores.to(x.dtype), x, input_precision=precision, out_dtype=tl.float32)
        held = tl.dot(C, tl.trans(state.to(C.dtype)), input_precision=precision, out_dtype=tl.float32)
        y += held * tl.exp(log_decay)[:, None] + D * x
        rows = start + qs
        tl.store(y_ptr + rows[:, None] * h * p + ps[None], y, mask=(rows < l)[:, None] & (ps < p)[None])
        state = _advance(state, x, dt, B, log_decay, total, precision)
    tl.store(last_ptr + cell, state, mask=whole)


@triton.jit
def _backward(x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, state_ptr, dy_ptr, dlast_ptr, scratch_ptr,
              dx_ptr, ddt_ptr, dA_ptr, dB_ptr, dC_ptr, dD_ptr, dstate_ptr, l, h, r,
              sxb, sxl, sxh, sdb, sdl, sdh, sBb, sBl, sBg, sCb, sCl, sCg,
              has_state: tl.constexpr, has_dlast: tl.constexpr,
              Q: tl.constexpr, P: tl.constexpr, N: tl.constexpr, p: tl.constexpr, n: tl.constexpr,
              precision: tl.constexpr):  # fmt: skip
    row, head = (tl.program_id(0) // h).to(tl.int64), tl.program_id(0) % h
    group = head // r
    x_ptr += row * sxb + head * sxh
    dt_ptr += row * sdb + head * sdh
    B_ptr += row * sBb + group * sBg
    C_ptr += row * sCb + group * sCg
    dy_ptr += (row * l * h + head) * p
    dx_ptr += (row * l * h + head) * p
    ddt_ptr += row * l * h + head
    dB_ptr += (row * l * h + head) * n
    dC_ptr += (row * l * h + head) * n
    chunks = tl.cdiv(l, Q)
    scratch_ptr += (row * h + head) * chunks * P * N
    A, D = tl.load(A_ptr + head).to(tl.float32), tl.load(D_ptr + head).to(tl.float32)
    qs, ps, ns = tl.arange(0, Q), tl.arange(0, P), tl.arange(0, N)
    cell = (row * h + head) * p * n + ps[:, None] * n + ns[None]
    tile = ps[:, None] * N + ns[None]
    whole = (ps < p)[:, None] & (ns < n)[None]

    # forward once more, for the state each chunk begins with
    state = tl.zeros((P, N), tl.float32)
    if has_state:
        state = tl.load(state_ptr + cell, mask=whole, other=0.0)
    for i in range(chunks):
        tl.store(scratch_ptr + i * P * N + tile, state)
        x, dt, B, C, log_decay = _chunk(x_ptr, dt_ptr, B_ptr, C_ptr, A, i * Q, l, sxl, sdl, sBl, sCl, Q, P, N, p, n)
        state = _advance(state, x, dt, B, log_decay, tl.sum(dt * A, 0), precision)
    tl.debug_barrier()  # the tiles are read back by other threads than wrote them

    dstate = tl.zeros((P, N), tl.float32)
    if has_dlast:
        dstate = tl.load(dlast_ptr + cell, mask=whole, other=0.0)
    dA, dD = 0.0, 0.0
    lower = qs[:, None] >= qs[None]
    for back in range(chunks):
        i = chunks - 1 - back
        x, dt, B, C, log_decay = _chunk(x_ptr, dt_ptr, B_ptr, C_ptr, A, i * Q, l, sxl, sdl, sBl, sCl, Q, P, N, p, n)
        total = tl.sum(dt * A, 0)
        state = tl.load(scratch_ptr + i * P * N + tile)
        rows = i * Q + qs
        keep_p = (rows < l)[:, None] & (ps < p)[None]
        keep_n = (rows < l)[:, None] & (ns < n)[None]
        dy = tl.load(dy_ptr + rows[:, None] * h * p + ps[None], mask=keep_p, other=0.0)
        dD += tl.sum(dy.to(tl.float32) * x.to(tl.float32))

        # within the chunk: y = W x with W_ij = (C_i B_j) exp(s_i - s_j) dt_j
        decay = tl.exp(tl.where(lower, log_decay[:, None] - log_decay[None], float("-inf")))
        M = tl.dot(C, tl.trans(B), input_precision=precision, out_dtype=tl.float32) * decay
        dW = tl.dot(dy, tl.trans(x), input_precision=precision, out_dtype=tl.float32)
        dx = tl.dot(tl.trans((M * dt[None]).to(dy.dtype)), dy, input_precision=precision, out_dtype=tl.float32)
        MdW = M * dW
        ddt = tl.sum(MdW, 0)
        ds = tl.sum(MdW * dt[None], 1) - ddt * dt
        dG = (dW * decay * dt[None]).to(B.dtype)
        dC = tl.dot(dG, B, input_precision=precision, out_dtype=tl.float32)
        dB = tl.dot(tl.trans(dG), C, input_precision=precision, out_dtype=tl.float32)

        # from the state before: y_i += exp(s_i) C_i H
        grow = tl.exp(log_decay)
        dyH = tl.dot(dy, state.to(dy.dtype), input_precision=precision, out_dtype=tl.float32) * grow[:, None]
        dC += dyH
        ds += tl.sum(dyH * C.to(tl.float32), 1)

        # into the state after: H' = exp(s_Q) H + sum_j exp(s_Q - s_j) dt_j x_j B_j
        shrink = tl.exp(total - log_decay)
        weight = shrink * dt
        narrow = dstate.to(x.dtype)
        xdH = tl.dot(x, narrow, input_precision=precision, out_dtype=tl.float32)
        dB += xdH * weight[:, None]
        dx += tl.dot(B, tl.trans(narrow), input_precision=precision, out_dtype=tl.float32) * weight[:, None]
        dweight = tl.sum(xdH * B.to(tl.float32), 1)
        ddt += dweight * shrink
        ds -= dweight * weight
        dtotal = tl.sum(dweight * weight, 0) + tl.exp(total) * tl.sum(state * dstate)
        dx += D * dy

        # s is a running sum: its gradient runs back; the total reaches every row of the chunk
        da = tl.sum(ds, 0) - tl.cumsum(ds, 0) + ds + dtotal
        ddt += da * A
        dA += tl.sum(da * dt, 0)
        tl.store(dx_ptr + rows[:, None] * h * p + ps[None], dx, mask=keep_p)
        tl.store(ddt_ptr + rows * h, ddt, mask=rows < l)
        tl.store(dB_ptr + rows[:, None] * h * n + ns[None], dB, mask=keep_n)
        tl.store(dC_ptr + rows[:, None] * h * n + ns[None], dC, mask=keep_n)
        into = tl.trans((dy * grow[:, None]).to(C.dtype))
        dstate = dstate * tl.exp(total) + tl.dot(into, C, input_precision=precision, out_dtype=tl.float32)
    tl.store(dA_ptr + row * h + head, dA)
    tl.store(dD_ptr + row * h + head, dD)
    tl.store(dstate_ptr + cell, dstate, mask=whole)


def _sizes(x: Tensor, B: Tensor) -> dict[str, object]:
    """Tile sizes: powers of two, at least the 16 of the matrix units."""
    p, n = x.shape[3], B.shape[3]
    # float32 in full: the fast path must give the reference's greedy tokens
    precision = "ieee" if x.dtype == torch.float32 else "tf32"
    up = {name: max(16, triton.next_power_of_2(v)) for name, v in (("P", p), ("N", n))}
    return {"Q": CHUNK if x.dtype != torch.float32 else 32, **up, "p": p, "n": n, "precision": precision}


def _strides(x: Tensor, dt: Tensor, B: Tensor, C: Tensor) -> list[int]:
    return [*x.stride()[:3], *dt.stride(), *B.stride()[:3], *C.stride()[:3]]


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dt, A, B, C, D, state):  # type: ignore[no-untyped-def]  # torch's own signature
        b, l, h, p = x.shape
        g, n = B.shape[2:]
        y = torch.empty(b, l, h, p, dtype=x.dtype, device=x.device)
        last = torch.empty(b, h, p, n, dtype=torch.float32, device=x.device)
        _forward[(b * h,)](
            x, dt, A, B, C, D, state, y, last, l, h, h // g, *_strides(x, dt, B, C),
            has_state=state is not None, **_sizes(x, B), num_warps=FORWARD_WARPS,
        )  # fmt: skip
        ctx.save_for_backward(x, dt, A, B, C, D, state)
        return y, last

    @staticmethod
    def backward(ctx, dy, dlast):  # type: ignore[no-untyped-def]
        x, dt, A, B, C, D, state = ctx.saved_tensors
        b, l, h, p = x.shape
        g, n = B.shape[2:]
        sizes = _sizes(x, B)
        chunks = triton.cdiv(l, sizes["Q"])
        float32 = {"dtype": torch.float32, "device": x.device}
        scratch = torch.empty(b * h * chunks, sizes["P"], sizes["N"], **float32)
        dx = torch.empty(b, l, h, p, dtype=x.dtype, device=x.device)
        ddt = torch.empty(b, l, h, **float32)
        dA, dD = torch.empty(b, h, **float32), torch.empty(b, h, **float32)
        # one part a head, summed below: the same sum every time, unlike atomics
        dB, dC = (torch.empty(b, l, h, n, dtype=x.dtype, device=x.device) for _ in range(2))
        dstate = torch.empty(b, h, p, n, **float32)
        _backward[(b * h,)](
            x, dt, A, B, C, D, state, dy.contiguous(), dlast, scratch, dx, ddt, dA, dB, dC, dD, dstate,
            l, h, h // g, *_strides(x, dt, B, C),
            has_state=state is not None, has_dlast=dlast is not None, **sizes, num_warps=BACKWARD_WARPS,
        )  # fmt: skip
        dB, dC = (t.unflatten(2, (g, h // g)).sum(3, dtype=torch.float32).to(x.dtype) for t in (dB, dC))
        return (
            dx,
            ddt.to(dt.dtype),
            dA.sum(0).to(A.dtype),
            dB,
            dC,
            dD.sum(0).to(D.dtype),
            (dstate if state is not None else None),
        )


def ssd_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, *, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Same contract as reference.ssd_scan, but for chunk_size: tiles have their own size here."""
    x, B, C = (t if t.stride(-1) == 1 else t.contiguous() for t in (x, B, C))
    B, C = B.to(x.dtype), C.to(x.dtype)
    state = None if state is None else state.float().contiguous()
    return _Scan.apply(x, dt, A, B, C, D, state)
