"""The scan's backward pass as four Triton kernels, and two small ones of triton_decay around them.

The first walks each sequence once forward and once backward, at the same time, and keeps between chunks the state and
the gradient of the state, in the inputs' dtype. With both at hand all chunks are independent: a program of the others
takes one chunk and some heads of a group, which share B and C, and keeps dB and dC in registers over those heads. They
are two because one would need more registers than there are. The last adds up what different heads have left.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from omnimamba_cli.ops.chips import is_large
from omnimamba_cli.ops.packing import Packing
from omnimamba_cli.ops.train_plans import ScanGradientPlan, scan_gradient_plan
from omnimamba_cli.ops.triton_decay import decays, decays_backward
from omnimamba_cli.ops.triton_math import first_piece, load_tile, piece_at, sequence_at


@triton.jit
def _walk(left_ptr, right_ptr, times_ptr, logs_ptr, state, out_ptr, l, h, s_left, s_right, BACK: tl.constexpr,
          known: tl.constexpr, Q: tl.constexpr, P: tl.constexpr, N: tl.constexpr, p: tl.constexpr, n: tl.constexpr,
          precision: tl.constexpr):  # fmt: skip
    """Store (P N) before every chunk on the way; left (l p) and right (l n) are x and B, going back dy and C.

    What the walk begins with is stored only where it is `known`: else it is zero, and nobody reads it.
    """
    qs, ps, ns = tl.arange(0, Q), tl.arange(0, P), tl.arange(0, N)
    tile = ps[:, None] * N + ns[None]
    chunks = tl.cdiv(l, Q)
    for turn in range(chunks):
        i = turn
        if BACK:
            i = chunks - 1 - turn
        tl.store(out_ptr + i * h * P * N + tile, state, mask=(tile >= 0) & ((turn > 0) | known))
        rows = i * Q + qs
        left = load_tile(left_ptr, rows, ps, l, s_left, p)
        right = load_tile(right_ptr, rows, ns, l, s_right, n)
        log_decay, total = tl.load(logs_ptr + i * h * Q + qs), tl.load(logs_ptr + i * h * Q + Q - 1)
        weight = tl.exp(log_decay) if BACK else tl.exp(total - log_decay) * tl.load(times_ptr + i * h * Q + qs)
        into = tl.trans((left.to(tl.float32) * weight[:, None]).to(left.dtype))
        state = tl.dot(into, right, state * tl.exp(total), input_precision=precision)
    return state


@triton.jit(do_not_specialize=["b", "l", "more_l"])  # lengths vary from batch to batch
def _states(x_ptr, times_ptr, logs_ptr, B_ptr, C_ptr, state_ptr, dy_ptr, dlast_ptr, states_ptr, dstates_ptr, dstate_ptr,
            b, l, more_l, h, r, sx, sxh, sB, sBg, sC, sCg, sg, sgh,
            has_state: tl.constexpr, has_dlast: tl.constexpr, Q: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
            p: tl.constexpr, n: tl.constexpr, precision: tl.constexpr):  # fmt: skip
    """The state before each chunk (programs 0), the gradient of the state after it (programs 1)."""
    sequence, head = tl.program_id(0) // h, tl.program_id(0) % h
    group = head // r
    row, rows = sequence_at(sequence, b, l, more_l)
    ps, ns = tl.arange(0, P), tl.arange(0, N)
    cell = (sequence.to(tl.int64) * h + head) * p * n + ps[:, None] * n + ns[None]
    whole = (ps < p)[:, None] & (ns < n)[None]
    chunk = first_piece(sequence, b, l, more_l, Q) * h + head
    kept = chunk * P * N
    times_ptr += chunk * Q
    logs_ptr += chunk * Q
    state = tl.zeros((P, N), tl.float32)
    if tl.program_id(1) == 0:
        if has_state:
            state = tl.load(state_ptr + cell, mask=whole, other=0.0)
        _walk(
            x_ptr + row * sx + head * sxh, B_ptr + row * sB + group * sBg, times_ptr, logs_ptr, state,
            states_ptr + kept, rows, h, sx, sB, False, has_state, Q, P, N, p, n, precision,
        )  # fmt: skip
    else:
        if has_dlast:
            state = tl.load(dlast_ptr + cell, mask=whole, other=0.0)
        state = _walk(
            dy_ptr + row * sg + head * sgh, C_ptr + row * sC + group * sCg, times_ptr, logs_ptr, state,
            dstates_ptr + kept, rows, h, sg, sC, True, has_dlast, Q, P, N, p, n, precision,
        )  # fmt: skip
        if has_state:
            tl.store(dstate_ptr + cell, state, mask=whole)


@triton.jit(do_not_specialize=["b", "l", "more_l"])
def _between_chunks(x_ptr, times_ptr, logs_ptr, C_ptr, dy_ptr, states_ptr, dstates_ptr, ds_ptr, dtotal_ptr, dB_ptr,
                    dC_ptr, b, l, more_l, h, r, blocks, sx, sxh, sC, sCg, sg, sgh,
                    has_state: tl.constexpr, has_dlast: tl.constexpr, HEADS: tl.constexpr, Q: tl.constexpr,
                    P: tl.constexpr, N: tl.constexpr, p: tl.constexpr, n: tl.constexpr,
                    precision: tl.constexpr):  # fmt: skip
    """The parts of a chunk's dC from the state before it, and of its dB from the gradient of the state after it.

    Also the gradient of the running log decay as far as it scales the state before, and of a chunk's whole decay.
    """
    _, row, l, chunk = piece_at(tl.program_id(0), b, l, more_l, Q)
    group, block = tl.program_id(1) // blocks, tl.program_id(1) % blocks
    qs, ps, ns = tl.arange(0, Q), tl.arange(0, P), tl.arange(0, N)
    rows = chunk * Q + qs
    C = load_tile(C_ptr + row * sC + group * sCg, rows, ns, l, sC, n)
    tile = ps[:, None] * N + ns[None]
    # zero, and not stored, where a walk begins with nothing
    before_known = (tile >= 0) & ((chunk > 0) | has_state)
    after_known = (tile >= 0) & (((chunk + 1) * Q < l) | has_dlast)
    dB, dC = tl.zeros((Q, N), tl.float32), tl.zeros((Q, N), tl.float32)
    first = group * r + block * HEADS
    for head in range(first, tl.minimum(first + HEADS, group * r + r)):
        x = load_tile(x_ptr + row * sx + head * sxh, rows, ps, l, sx, p)
        dy = load_tile(dy_ptr + row * sg + head * sgh, rows, ps, l, sg, p)
        end = tl.program_id(0).to(tl.int64) * h + head
        kept = end * P * N
        state = tl.load(states_ptr + kept + tile, mask=before_known, other=0.0)
        dstate = tl.load(dstates_ptr + kept + tile, mask=after_known, other=0.0)
        dt, log_decay = tl.load(times_ptr + end * Q + qs), tl.load(logs_ptr + end * Q + qs)
        total = tl.load(logs_ptr + end * Q + Q - 1)
        # y_i += exp(s_i) C_i H
        grow = tl.exp(log_decay)
        before = tl.dot(C, tl.trans(state), input_precision=precision, out_dtype=tl.float32)
        ds = tl.sum(before * dy.to(tl.float32), 1) * grow
        dC = tl.dot((dy.to(tl.float32) * grow[:, None]).to(dy.dtype), state, dC, input_precision=precision)
        # H' = exp(s_Q) H + sum_j exp(s_Q - s_j) dt_j x_j B_j
        weight = tl.exp(total - log_decay) * dt
        dB = tl.dot((x.to(tl.float32) * weight[:, None]).to(x.dtype), dstate, dB, input_precision=precision)
        dtotal = tl.exp(total) * tl.sum(tl.sum(state.to(tl.float32) * dstate.to(tl.float32), 1), 0)
        tl.store(ds_ptr + end * Q + qs, ds)
        tl.store(dtotal_ptr + end, dtotal)
    keep = (rows < l)[:, None] & (ns < n)[None]
    place = ((row + rows) * tl.num_programs(1) + tl.program_id(1))[:, None] * n + ns[None]
    tl.store(dB_ptr + place, dB, mask=keep)
    tl.store(dC_ptr + place, dC, mask=keep)


@triton.jit(do_not_specialize=["b", "l", "more_l"])
def _within_chunks(x_ptr, times_ptr, logs_ptr, B_ptr, C_ptr, D_ptr, dy_ptr, dstates_ptr, dx_ptr, from_ptr, end_ptr,
                   to_ptr, dyx_ptr, dscores_ptr, b, l, more_l, h, r, blocks, sx, sxh, sB, sBg, sC, sCg, sg, sgh,
                   su, suh, has_dlast: tl.constexpr, HEADS: tl.constexpr, Q: tl.constexpr, P: tl.constexpr,
                   N: tl.constexpr, p: tl.constexpr, n: tl.constexpr, precision: tl.constexpr):  # fmt: skip
    """The rest: dx, of B C' in a chunk, and the parts that decays_backward wants."""
    _, row, l, chunk = piece_at(tl.program_id(0), b, l, more_l, Q)
    group, block = tl.program_id(1) // blocks, tl.program_id(1) % blocks
    qs, ps, ns = tl.arange(0, Q), tl.arange(0, P), tl.arange(0, N)
    rows = chunk * Q + qs
    # all matrices of times are (from, to), so that the next product takes them as they come out of one
    upper = qs[:, None] <= qs[None]
    B = load_tile(B_ptr + row * sB + group * sBg, rows, ns, l, sB, n)
    C = load_tile(C_ptr + row * sC + group * sCg, rows, ns, l, sC, n)
    tile = ps[:, None] * N + ns[None]
    after_known = (tile >= 0) & (((chunk + 1) * Q < l) | has_dlast)
    # no time reaches back: zero here, and of what the loop adds up at its end
    scores = tl.where(upper, tl.dot(B, tl.trans(C), input_precision=precision, out_dtype=tl.float32), 0.0)
    dscores = tl.zeros((Q, Q), tl.float32)
    first = group * r + block * HEADS
    for head in range(first, tl.minimum(first + HEADS, group * r + r)):
        x = load_tile(x_ptr + row * sx + head * sxh, rows, ps, l, sx, p)
        dy = load_tile(dy_ptr + row * sg + head * sgh, rows, ps, l, sg, p)
        end = tl.program_id(0).to(tl.int64) * h + head
        dstate = tl.load(dstates_ptr + end * P * N + tile, mask=after_known, other=0.0)
        dt, log_decay = tl.load(times_ptr + end * Q + qs), tl.load(logs_ptr + end * Q + qs)
        total = tl.load(logs_ptr + end * Q + Q - 1)

        # y = W x with W_ij = (C_i B_j) exp(s_i - s_j) dt_j
        decay = tl.exp(tl.minimum(log_decay[None] - log_decay[:, None], 0.0))
        dW = tl.dot(x, tl.trans(dy), input_precision=precision, out_dtype=tl.float32) * decay
        # on the diagonal there is no decay
        tl.store(dyx_ptr + end * Q + qs, tl.sum(tl.where(qs[:, None] == qs[None], dW, 0.0), 1))
        dscores += dW * dt[:, None]
        MdW = scores * dW
        ddt = tl.sum(MdW, 1)
        tl.store(to_ptr + end * Q + qs, tl.sum(MdW * dt[:, None], 0))
        M = (scores * decay).to(dy.dtype)
        # H' = exp(s_Q) H + sum_j exp(s_Q - s_j) dt_j x_j B_j
        du = tl.dot(B, tl.trans(dstate), input_precision=precision, out_dtype=tl.float32)  # of dt x
        du *= tl.exp(total - log_decay)[:, None]
        dweight = tl.sum(du * x.to(tl.float32), 1)  # times its shrinking
        tl.store(end_ptr + end * Q + qs, dweight)
        tl.store(from_ptr + end * Q + qs, ddt + dweight)
        du = tl.dot(M, dy, du, input_precision=precision)
        dx = du * dt[:, None] + tl.load(D_ptr + head).to(tl.float32) * dy.to(tl.float32)
        place = dx_ptr + row * su + head * suh + rows[:, None] * su + ps[None]
        tl.store(place, dx, mask=(rows < l)[:, None] & (ps < p)[None])
    place = (tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * Q * Q
    tl.store(dscores_ptr + place + qs[:, None] * Q + qs[None], tl.where(upper, dscores, 0.0))


@triton.jit(do_not_specialize=["b", "l", "more_l"])
def _sum_heads(B_ptr, C_ptr, dB_parts_ptr, dC_parts_ptr, dscores_ptr, dB_ptr, dC_ptr, b, l, more_l, within,
               between, sB, sBg, sC, sCg, sd, sdg, Q: tl.constexpr, N: tl.constexpr, n: tl.constexpr,
               precision: tl.constexpr):  # fmt: skip
    """dB and dC of a chunk and group, from the parts that the blocks of heads have left."""
    _, row, l, chunk = piece_at(tl.program_id(0), b, l, more_l, Q)
    group = tl.program_id(1)
    qs, ns = tl.arange(0, Q), tl.arange(0, N)
    rows = chunk * Q + qs
    keep = (rows < l)[:, None] & (ns < n)[None]
    dB, dC = tl.zeros((Q, N), tl.float32), tl.zeros((Q, N), tl.float32)
    dscores = tl.zeros((Q, Q), tl.float32)
    for part in range(between):
        place = ((row + rows) * tl.num_programs(1) * between + group * between + part)[:, None] * n + ns[None]
        dB += tl.load(dB_parts_ptr + place, mask=keep, other=0.0)
        dC += tl.load(dC_parts_ptr + place, mask=keep, other=0.0)
    for part in range(within):
        place = ((tl.program_id(0).to(tl.int64) * tl.num_programs(1) + group) * within + part) * Q * Q
        dscores += tl.load(dscores_ptr + place + qs[:, None] * Q + qs[None])
    B = load_tile(B_ptr + row * sB + group * sBg, rows, ns, l, sB, n)
    C = load_tile(C_ptr + row * sC + group * sCg, rows, ns, l, sC, n)
    narrow = dscores.to(B.dtype)
    dB = tl.dot(narrow, C, dB, input_precision=precision)
    dC = tl.dot(tl.trans(narrow), B, dC, input_precision=precision)
    place = row * sd + group * sdg + rows[:, None] * sd + ns[None]
    tl.store(dB_ptr + place, dB, mask=keep)
    tl.store(dC_ptr + place, dC, mask=keep)


def scan_backward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    packing: Packing,
    state: Tensor | None,
    dy: Tensor,
    dlast: Tensor | None,
    dx: Tensor,
    dB: Tensor,
    dC: Tensor,
    plan: ScanGradientPlan | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Writes dx (t h p), dB and dC (t g n); returns ddt, dA, dD and dstate of reference.ssd_scan in float32.

    Rows are packed as for scan_forward. dy (t h p) is y's gradient, dlast (b h p n) the last states'. The innermost
    strides of x, B, C, dy, dx, dB and dC are 1, the other ones of dB and dC the same. The same sums every time: no
    atomic additions.
    """
    t, h, p = x.shape
    g, n = B.shape[1:]
    half = x.dtype != torch.float32
    plan = plan or scan_gradient_plan(p * n, x.dtype, large=is_large(x.device))
    chunks = packing.pieces(plan.chunk)
    P, N = (max(16, triton.next_power_of_2(v)) for v in (p, n))
    r = h // g
    heads = {"within": min(plan.within.heads, r), "between": min(plan.between.heads, r)}
    within, between = (triton.cdiv(r, number) for number in heads.values())  # blocks of heads
    float32 = {"dtype": torch.float32, "device": x.device}
    states, dstates = torch.empty(2, chunks * h, P, N, dtype=x.dtype, device=x.device)
    dstate = None if state is None else torch.empty(packing.sequences, h, p, n, **float32)
    # float32 in full: the fast path must give the reference's gradients
    sizes = {"Q": plan.chunk, "P": P, "N": N, "p": p, "n": n, "precision": "tf32" if half else "ieee"}
    sx, sB, sC, sdy = x.stride()[:2], B.stride()[:2], C.stride()[:2], dy.stride()[:2]
    unused = states  # where there is no tensor
    lengths = packing.lengths
    times, logs = decays(dt, A, packing, plan.chunk)
    _states[(packing.sequences * h, 2)](
        x, times, logs, B, C, unused if state is None else state, dy, unused if dlast is None else dlast, states,
        dstates, unused if dstate is None else dstate, *lengths, h, r, *sx, *sB, *sC, *sdy,
        has_state=state is not None, has_dlast=dlast is not None, **sizes,
        num_warps=plan.states.warps, num_stages=plan.states.stages, maxnreg=plan.states.registers,
    )  # fmt: skip
    before, *inner = torch.empty(5, *times.shape, **float32)  # see decays_backward
    dtotal = torch.empty(chunks, h, **float32)
    sides = torch.empty(2, t, g, between, n, **float32)  # dB and dC of each block of heads
    _between_chunks[(chunks, g * between)](
        x, times, logs, C, dy, states, dstates, before, dtotal, sides[0], sides[1], *lengths, h, r, between,
        *sx, *sC, *sdy, has_state=state is not None, has_dlast=dlast is not None, HEADS=heads["between"], **sizes,
        num_warps=plan.between.warps, num_stages=plan.between.stages, maxnreg=plan.between.registers,
    )  # fmt: skip
    dscores = torch.empty(chunks, g, within, plan.chunk, plan.chunk, **float32)
    _within_chunks[(chunks, g * within)](
        x, times, logs, B, C, D, dy, dstates, dx, *inner, dscores, *lengths, h, r, within,
        *sx, *sB, *sC, *sdy, *dx.stride()[:2], has_dlast=dlast is not None, HEADS=heads["within"], **sizes,
        num_warps=plan.within.warps, num_stages=plan.within.stages, maxnreg=plan.within.registers,
    )  # fmt: skip
    _sum_heads[(chunks, g)](
        B, C, sides[0], sides[1], dscores, dB, dC, *lengths, within, between, *sB, *sC, *dB.stride()[:2],
        Q=plan.chunk, N=N, n=n, precision=sizes["precision"], num_warps=8, num_stages=1,
    )  # fmt: skip
    ddt, dA, dD = decays_backward(A, times, (before, *inner), dtotal, packing)
    return ddt, dA, dD, dstate
