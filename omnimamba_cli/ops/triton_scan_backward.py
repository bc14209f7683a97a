"""The scan's backward pass as four Triton kernels.

The first walks each sequence once forward and once backward, at the same time, and keeps between chunks the state and
the gradient of the state, in the inputs' dtype. With both at hand all chunks are independent: a program of the others
takes one chunk and some heads of a group, which share B and C, and keeps dB and dC in registers over those heads. They
are two because one would need more registers than there are. The last adds up what different heads have left.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from omnimamba_cli.ops.train_plans import SCAN_GRADIENT, SCAN_GRADIENT_FLOAT32, ScanGradientPlan
from omnimamba_cli.ops.triton_math import load_tile


@triton.jit
def _walk(left_ptr, right_ptr, dt_ptr, A, state, out_ptr, l, chunks, s_left, s_right, sdt, BACK: tl.constexpr,
          known: tl.constexpr, Q: tl.constexpr, P: tl.constexpr, N: tl.constexpr, p: tl.constexpr, n: tl.constexpr,
          precision: tl.constexpr):  # fmt: skip
    """Store (P N) before every chunk on the way; left (l p) and right (l n) are x and B, going back dy and C.

    What the walk begins with is stored only where it is `known`: else it is zero, and nobody reads it.
    """
    qs, ps, ns = tl.arange(0, Q), tl.arange(0, P), tl.arange(0, N)
    tile = ps[:, None] * N + ns[None]
    for turn in range(chunks):
        i = turn
        if BACK:
            i = chunks - 1 - turn
        tl.store(out_ptr + i * P * N + tile, state, mask=(tile >= 0) & ((turn > 0) | known))
        rows = i * Q + qs
        left = load_tile(left_ptr, rows, ps, l, s_left, p)
        right = load_tile(right_ptr, rows, ns, l, s_right, n)
        dt = tl.load(dt_ptr + rows * sdt, mask=rows < l, other=0.0).to(tl.float32)
        log_decay = tl.cumsum(dt * A, 0)
        total = tl.sum(dt * A, 0)
        weight = tl.exp(log_decay) if BACK else tl.exp(total - log_decay) * dt
        into = tl.trans((left.to(tl.float32) * weight[:, None]).to(left.dtype))
        state = tl.dot(into, right, state * tl.exp(total), input_precision=precision)
    return state


@triton.jit(do_not_specialize=["l", "chunks"])  # lengths vary from batch to batch
def _states(x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, state_ptr, dy_ptr, dlast_ptr, states_ptr, dstates_ptr, dstate_ptr,
            l, h, r, chunks, sxb, sxl, sxh, sdb, sdl, sdh, sBb, sBl, sBg, sCb, sCl, sCg, sgb, sgl, sgh,
            has_state: tl.constexpr, has_dlast: tl.constexpr, Q: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
            p: tl.constexpr, n: tl.constexpr, precision: tl.constexpr):  # fmt: skip
    """The state before each chunk (programs 0), the gradient of the state after it (programs 1)."""
    row, head = (tl.program_id(0) // h).to(tl.int64), tl.program_id(0) % h
    group = head // r
    dt_ptr += row * sdb + head * sdh
    A = tl.load(A_ptr + head).to(tl.float32)
    ps, ns = tl.arange(0, P), tl.arange(0, N)
    cell = (row * h + head) * p * n + ps[:, None] * n + ns[None]
    whole = (ps < p)[:, None] & (ns < n)[None]
    kept = (row * h + head) * chunks * P * N
    state = tl.zeros((P, N), tl.float32)
    if tl.program_id(1) == 0:
        if has_state:
            state = tl.load(state_ptr + cell, mask=whole, other=0.0)
        _walk(
            x_ptr + row * sxb + head * sxh, B_ptr + row * sBb + group * sBg, dt_ptr, A, state, states_ptr + kept,
            l, chunks, sxl, sBl, sdl, False, has_state, Q, P, N, p, n, precision,
        )  # fmt: skip
    else:
        if has_dlast:
            state = tl.load(dlast_ptr + cell, mask=whole, other=0.0)
        state = _walk(
            dy_ptr + row * sgb + head * sgh, C_ptr + row * sCb + group * sCg, dt_ptr, A, state, dstates_ptr + kept,
            l, chunks, sgl, sCl, sdl, True, has_dlast, Q, P, N, p, n, precision,
        )  # fmt: skip
        if has_state:
            tl.store(dstate_ptr + cell, state, mask=whole)


@triton.jit(do_not_specialize=["l", "chunks"])
def _between_chunks(x_ptr, dt_ptr, A_ptr, C_ptr, dy_ptr, states_ptr, dstates_ptr, ds_ptr, dtotal_ptr, dB_ptr, dC_ptr,
                    l, h, r, chunks, blocks, sxb, sxl, sxh, sdb, sdl, sdh, sCb, sCl, sCg, sgb, sgl, sgh,
                    has_state: tl.constexpr, has_dlast: tl.constexpr, HEADS: tl.constexpr, Q: tl.constexpr,
                    P: tl.constexpr, N: tl.constexpr, p: tl.constexpr, n: tl.constexpr,
                    precision: tl.constexpr):  # fmt: skip
    """What a chunk's neighbours mean for its C (the state before it) and B (the gradient of the state after it).

    Also the gradient of the running log decay as far as it scales the state before, and of a chunk's whole decay.
    """
    row, chunk = (tl.program_id(0) // chunks).to(tl.int64), tl.program_id(0) % chunks
    group, block = tl.program_id(1) // blocks, tl.program_id(1) % blocks
    qs, ps, ns = tl.arange(0, Q), tl.arange(0, P), tl.arange(0, N)
    rows = chunk * Q + qs
    C = load_tile(C_ptr + row * sCb + group * sCg, rows, ns, l, sCl, n)
    tile = ps[:, None] * N + ns[None]
    # zero, and not stored, where a walk begins with nothing
    before_known = (tile >= 0) & ((chunk > 0) | has_state)
    after_known = (tile >= 0) & ((chunk < chunks - 1) | has_dlast)
    dB, dC = tl.zeros((Q, N), tl.float32), tl.zeros((Q, N), tl.float32)
    first = group * r + block * HEADS
    for head in range(first, tl.minimum(first + HEADS, group * r + r)):
        x = load_tile(x_ptr + row * sxb + head * sxh, rows, ps, l, sxl, p)
        dy = load_tile(dy_ptr + row * sgb + head * sgh, rows, ps, l, sgl, p)
        kept = ((row * h + head) * chunks + chunk) * P * N
        state = tl.load(states_ptr + kept + tile, mask=before_known, other=0.0)
        dstate = tl.load(dstates_ptr + kept + tile, mask=after_known, other=0.0)
        dt = tl.load(dt_ptr + row * sdb + head * sdh + rows * sdl, mask=rows < l, other=0.0).to(tl.float32)
        A = tl.load(A_ptr + head).to(tl.float32)
        log_decay = tl.cumsum(dt * A, 0)
        total = tl.sum(dt * A, 0)
        # y_i += exp(s_i) C_i H
        grow = tl.exp(log_decay)
        before = tl.dot(C, tl.trans(state), input_precision=precision, out_dtype=tl.float32)
        ds = tl.sum(before * dy.to(tl.float32), 1) * grow
        dC = tl.dot((dy.to(tl.float32) * grow[:, None]).to(dy.dtype), state, dC, input_precision=precision)
        # H' = exp(s_Q) H + sum_j exp(s_Q - s_j) dt_j x_j B_j
        weight = tl.exp(total - log_decay) * dt
        dB = tl.dot((x.to(tl.float32) * weight[:, None]).to(x.dtype), dstate, dB, input_precision=precision)
        dtotal = tl.exp(total) * tl.sum(tl.sum(state.to(tl.float32) * dstate.to(tl.float32), 1), 0)
        tl.store(ds_ptr + (row * l + rows) * h + head, ds, mask=rows < l)
        tl.store(dtotal_ptr + (row * chunks + chunk) * h + head, dtotal)
    keep = (rows < l)[:, None] & (ns < n)[None]
    place = ((row * l + rows) * tl.num_programs(1) + tl.program_id(1))[:, None] * n + ns[None]
    tl.store(dB_ptr + place, dB, mask=keep)
    tl.store(dC_ptr + place, dC, mask=keep)


@triton.jit(do_not_specialize=["l", "chunks"])
def _within_chunks(x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, dy_ptr, dstates_ptr, ds_ptr, dtotal_ptr,
                   dx_ptr, ddt_ptr, dA_ptr, dD_ptr, dscores_ptr, l, h, r, chunks, blocks,
                   sxb, sxl, sxh, sdb, sdl, sdh, sBb, sBl, sBg, sCb, sCl, sCg, sgb, sgl, sgh, sub, sul, suh,
                   has_dlast: tl.constexpr, HEADS: tl.constexpr, Q: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
                   p: tl.constexpr, n: tl.constexpr, precision: tl.constexpr):  # fmt: skip
    """The rest, with what _between_chunks found: dx, dt's gradient, dA and dD of a chunk, and of B C' in it."""
    row, chunk = (tl.program_id(0) // chunks).to(tl.int64), tl.program_id(0) % chunks
    group, block = tl.program_id(1) // blocks, tl.program_id(1) % blocks
    qs, ps, ns = tl.arange(0, Q), tl.arange(0, P), tl.arange(0, N)
    rows = chunk * Q + qs
    inside = rows < l
    # all matrices of times are (from, to), so that the next product takes them as they come out of one
    upper = qs[:, None] <= qs[None]
    B = load_tile(B_ptr + row * sBb + group * sBg, rows, ns, l, sBl, n)
    C = load_tile(C_ptr + row * sCb + group * sCg, rows, ns, l, sCl, n)
    tile = ps[:, None] * N + ns[None]
    after_known = (tile >= 0) & ((chunk < chunks - 1) | has_dlast)
    scores = tl.dot(B, tl.trans(C), input_precision=precision, out_dtype=tl.float32)
    dscores = tl.zeros((Q, Q), tl.float32)
    first = group * r + block * HEADS
    for head in range(first, tl.minimum(first + HEADS, group * r + r)):
        x = load_tile(x_ptr + row * sxb + head * sxh, rows, ps, l, sxl, p)
        dy = load_tile(dy_ptr + row * sgb + head * sgh, rows, ps, l, sgl, p)
        kept = ((row * h + head) * chunks + chunk) * P * N
        dstate = tl.load(dstates_ptr + kept + tile, mask=after_known, other=0.0)
        dt = tl.load(dt_ptr + row * sdb + head * sdh + rows * sdl, mask=inside, other=0.0).to(tl.float32)
        A, D = tl.load(A_ptr + head).to(tl.float32), tl.load(D_ptr + head).to(tl.float32)
        log_decay = tl.cumsum(dt * A, 0)
        total = tl.sum(dt * A, 0)

        # y = W x with W_ij = (C_i B_j) exp(s_i - s_j) dt_j
        decay = tl.exp(tl.where(upper, log_decay[None] - log_decay[:, None], float("-inf")))
        M = (scores * decay).to(dy.dtype)
        dW = tl.dot(x, tl.trans(dy), input_precision=precision, out_dtype=tl.float32) * decay
        dD = tl.sum(tl.sum(tl.where(qs[:, None] == qs[None], dW, 0.0), 1), 0)  # the sum of dy x: there decay is 1
        dscores += dW * dt[:, None]
        MdW = scores * dW
        ddt = tl.sum(MdW, 1)
        ds = tl.sum(MdW * dt[:, None], 0) - ddt * dt
        # H' = exp(s_Q) H + sum_j exp(s_Q - s_j) dt_j x_j B_j
        shrink = tl.exp(total - log_decay)
        du = tl.dot(B, tl.trans(dstate), input_precision=precision, out_dtype=tl.float32) * shrink[:, None]  # of dt x
        dweight = tl.sum(du * x.to(tl.float32), 1)  # times shrink
        ddt += dweight
        ds -= dweight * dt
        du = tl.dot(M, dy, du, input_precision=precision)

        # s is a running sum: its gradient runs back; the total reaches every row of the chunk
        ds += tl.load(ds_ptr + (row * l + rows) * h + head, mask=inside, other=0.0)
        end = (row * chunks + chunk) * h + head
        dtotal = tl.load(dtotal_ptr + end) + tl.sum(dweight * dt, 0)
        da = tl.sum(ds, 0) - tl.cumsum(ds, 0) + ds + dtotal
        ddt += da * A
        dx = du * dt[:, None] + D * dy.to(tl.float32)
        place = dx_ptr + row * sub + head * suh + rows[:, None] * sul + ps[None]
        tl.store(place, dx, mask=inside[:, None] & (ps < p)[None])
        tl.store(ddt_ptr + (row * l + rows) * h + head, ddt, mask=inside)
        tl.store(dA_ptr + end, tl.sum(da * dt, 0))
        tl.store(dD_ptr + end, dD)
    place = (tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * Q * Q
    tl.store(dscores_ptr + place + qs[:, None] * Q + qs[None], dscores)


@triton.jit(do_not_specialize=["l", "chunks"])
def _sum_heads(B_ptr, C_ptr, dB_parts_ptr, dC_parts_ptr, dscores_ptr, dB_ptr, dC_ptr, l, chunks, within, between,
               sBb, sBl, sBg, sCb, sCl, sCg, sb, sl, sg, Q: tl.constexpr, N: tl.constexpr, n: tl.constexpr,
               precision: tl.constexpr):  # fmt: skip
    """dB and dC of a chunk and group, from the parts that the blocks of heads have left."""
    row, chunk, group = (tl.program_id(0) // chunks).to(tl.int64), tl.program_id(0) % chunks, tl.program_id(1)
    qs, ns = tl.arange(0, Q), tl.arange(0, N)
    rows = chunk * Q + qs
    keep = (rows < l)[:, None] & (ns < n)[None]
    dB, dC = tl.zeros((Q, N), tl.float32), tl.zeros((Q, N), tl.float32)
    dscores = tl.zeros((Q, Q), tl.float32)
    for part in range(between):
        place = ((row * l + rows) * tl.num_programs(1) * between + group * between + part)[:, None] * n + ns[None]
        dB += tl.load(dB_parts_ptr + place, mask=keep, other=0.0)
        dC += tl.load(dC_parts_ptr + place, mask=keep, other=0.0)
    for part in range(within):
        place = ((tl.program_id(0).to(tl.int64) * tl.num_programs(1) + group) * within + part) * Q * Q
        dscores += tl.load(dscores_ptr + place + qs[:, None] * Q + qs[None])
    B = load_tile(B_ptr + row * sBb + group * sBg, rows, ns, l, sBl, n)
    C = load_tile(C_ptr + row * sCb + group * sCg, rows, ns, l, sCl, n)
    narrow = dscores.to(B.dtype)
    dB = tl.dot(narrow, C, dB, input_precision=precision)
    dC = tl.dot(tl.trans(narrow), B, dC, input_precision=precision)
    place = row * sb + group * sg + rows[:, None] * sl + ns[None]
    tl.store(dB_ptr + place, dB, mask=keep)
    tl.store(dC_ptr + place, dC, mask=keep)


def scan_backward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    state: Tensor | None,
    dy: Tensor,
    dlast: Tensor | None,
    dx: Tensor,
    dB: Tensor,
    dC: Tensor,
    plan: ScanGradientPlan | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Writes dx (b l h p), dB and dC (b l g n); returns ddt, dA, dD and dstate of reference.ssd_scan in float32.

    dy (b l h p) is y's gradient, dlast (b h p n) the last state's. The innermost strides of x, B, C, dy, dx, dB and dC
    are 1, the other ones of dB and dC the same. The same sums every time: no atomic additions.
    """
    b, l, h, p = x.shape
    g, n = B.shape[2:]
    half = x.dtype != torch.float32
    plan = plan or (SCAN_GRADIENT if half else SCAN_GRADIENT_FLOAT32)
    chunks = triton.cdiv(l, plan.chunk)
    P, N = (max(16, triton.next_power_of_2(v)) for v in (p, n))
    r = h // g
    heads = {"within": min(plan.within.heads, r), "between": min(plan.between.heads, r)}
    within, between = (triton.cdiv(r, number) for number in heads.values())  # blocks of heads
    float32 = {"dtype": torch.float32, "device": x.device}
    states, dstates = torch.empty(2, b * h * chunks, P, N, dtype=x.dtype, device=x.device)
    dstate = None if state is None else torch.empty(b, h, p, n, **float32)
    # float32 in full: the fast path must give the reference's gradients
    sizes = {"Q": plan.chunk, "P": P, "N": N, "p": p, "n": n, "precision": "tf32" if half else "ieee"}
    sx, sdt, sB, sC, sdy = x.stride()[:3], dt.stride(), B.stride()[:3], C.stride()[:3], dy.stride()[:3]
    unused = states  # where there is no tensor
    _states[(b * h, 2)](
        x, dt, A, B, C, unused if state is None else state, dy, unused if dlast is None else dlast, states, dstates,
        unused if dstate is None else dstate, l, h, r, chunks, *sx, *sdt, *sB, *sC, *sdy,
        has_state=state is not None, has_dlast=dlast is not None, **sizes,
        num_warps=plan.states.warps, num_stages=plan.states.stages, maxnreg=plan.states.registers,
    )  # fmt: skip
    ds, ddt = torch.empty(2, b, l, h, **float32)
    dtotal, *ends = torch.empty(3, b * chunks, h, **float32)  # of each chunk, like dA and dD
    sides = torch.empty(2, b, l, g, between, n, **float32)  # dB and dC of each block of heads
    _between_chunks[(b * chunks, g * between)](
        x, dt, A, C, dy, states, dstates, ds, dtotal, sides[0], sides[1], l, h, r, chunks, between,
        *sx, *sdt, *sC, *sdy, has_state=state is not None, has_dlast=dlast is not None, HEADS=heads["between"], **sizes,
        num_warps=plan.between.warps, num_stages=plan.between.stages, maxnreg=plan.between.registers,
    )  # fmt: skip
    dscores = torch.empty(b * chunks, g, within, plan.chunk, plan.chunk, **float32)
    _within_chunks[(b * chunks, g * within)](
        x, dt, A, B, C, D, dy, dstates, ds, dtotal, dx, ddt, ends[0], ends[1], dscores, l, h, r, chunks, within,
        *sx, *sdt, *sB, *sC, *sdy, *dx.stride()[:3], has_dlast=dlast is not None, HEADS=heads["within"], **sizes,
        num_warps=plan.within.warps, num_stages=plan.within.stages, maxnreg=plan.within.registers,
    )  # fmt: skip
    _sum_heads[(b * chunks, g)](
        B, C, sides[0], sides[1], dscores, dB, dC, l, chunks, within, between, *sB, *sC, *dB.stride()[:3],
        Q=plan.chunk, N=N, n=n, precision=sizes["precision"], num_warps=8, num_stages=1,
    )  # fmt: skip
    dA, dD = (end.sum(0) for end in ends)
    return ddt, dA, dD, dstate
