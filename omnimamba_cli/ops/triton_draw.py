"""The end of a decoding step as one Triton kernel: scores to a token, and the token to the next step's input.

One program a sequence, over the vocabulary in blocks. The order of filters and the arithmetic of a draw are those of
engine/sampling.py, to which tests hold it; top-k and top-p need an order, so with them the token is given.
Importing needs Triton.
"""

import triton
import triton.language as tl
from torch import Tensor

from omnimamba_cli.ops.draw import DrawBuffers, DrawRule

BLOCK = 16_384  # scores at a time
LINE = 128  # of them, summed before it is known in which one the token is
WARPS = 16


@triton.jit
def _scores(logits_ptr, seen_ptr, row, b, start, v, limit, guidance, penalty, temperature, GUIDED: tl.constexpr,
            PENALIZED: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Scores of one block, -inf for what may not be written."""
    ids = start + tl.arange(0, BLOCK)
    inside = ids < v  # not limit, which may be odd: whole vectors are loaded
    s = tl.load(logits_ptr + row * v + ids, mask=inside, other=0.0)
    if GUIDED:
        empty = tl.load(logits_ptr + (row + b) * v + ids, mask=inside, other=0.0)
        s = empty + guidance * (s - empty)
    if PENALIZED:
        seen = tl.load(seen_ptr + row * v + ids, mask=inside, other=0)
        s = tl.where(seen != 0, tl.where(s > 0, s / penalty, s * penalty), s)
    return tl.where(ids < limit, s / temperature, float("-inf")), ids


@triton.jit
def _share(s, best, min_p):
    """Of each score how likely its token is, the likeliest being 1; float64."""
    share = tl.exp(s - best)
    return tl.where(share < min_p, 0.0, share).to(tl.float64)


@triton.jit
def _draw(logits_ptr, seen_ptr, uniform_ptr, chosen_ptr, tokens_ptr, count_ptr, position_ptr, table_ptr, places_ptr,
          residual_ptr, b, v, limit, guidance, penalty, temperature, min_p, d, last, CHOICE: tl.constexpr,
          GUIDED: tl.constexpr, PENALIZED: tl.constexpr, RING: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
          LINE: tl.constexpr, D: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    count = tl.load(count_ptr + row)
    slot = (count % RING) * b + row
    if CHOICE == "given":
        token = tl.load(chosen_ptr + row)
    else:
        best = tl.full((), float("-inf"), tl.float32)
        token = tl.full((), 0, tl.int64)
        for start in range(0, limit, BLOCK):
            s, ids = _scores(logits_ptr, seen_ptr, row, b, start, v, limit, guidance, penalty, temperature, GUIDED,
                             PENALIZED, BLOCK)  # fmt: skip
            top = tl.max(s, 0)
            if CHOICE == "greedy":
                # of equal scores the first, as on a CPU
                first = tl.min(tl.where(s == top, ids, 2147483647), 0).to(tl.int64)
                token = tl.where(top > best, first, token)
            best = tl.maximum(top, best)
    if CHOICE == "draw":
        # float64 as in the reference: in float32 a long sum forgets the unlikely tokens
        LINES: tl.constexpr = BLOCK // LINE
        blocks = tl.arange(0, BLOCKS)[:, None]
        shares = tl.zeros((BLOCKS, LINES), tl.float64)  # of each line of LINE tokens
        for i in range(tl.cdiv(limit, BLOCK)):
            s, _ = _scores(logits_ptr, seen_ptr, row, b, i * BLOCK, v, limit, guidance, penalty, temperature, GUIDED,
                           PENALIZED, BLOCK)  # fmt: skip
            share = tl.reshape(_share(s, best, min_p), (LINES, LINE))
            shares = tl.where(blocks == i, tl.sum(share, 1)[None], shares)
        upto = tl.cumsum(tl.reshape(shares, (BLOCKS * LINES,)), 0)
        point = tl.minimum(tl.load(uniform_ptr + slot), 1 - 1 / 16777216) * tl.max(upto, 0)
        line = tl.sum((upto <= point).to(tl.int32), 0)
        before = tl.max(tl.where(upto <= point, upto, 0.0), 0)
        s, _ = _scores(logits_ptr, seen_ptr, row, b, line * LINE, v, limit, guidance, penalty, temperature, GUIDED,
                       PENALIZED, LINE)  # fmt: skip
        passed = before + tl.cumsum(_share(s, best, min_p), 0) <= point
        token = tl.minimum(line * LINE + tl.sum(passed.to(tl.int32), 0), limit - 1).to(tl.int64)
    tl.store(tokens_ptr + slot, token)
    tl.store(count_ptr + row, count + 1)
    if PENALIZED:
        tl.store(seen_ptr + row * v + token, 1)
    # the next step's input: embedding and place, added in the model's dtype as the model does
    place = tl.load(position_ptr + row) + 1
    ds = tl.arange(0, D)
    x = tl.load(table_ptr + token * d + ds, mask=ds < d, other=0.0)
    x += tl.load(places_ptr + tl.minimum(place, last) * d + ds, mask=ds < d, other=0.0)
    tl.store(residual_ptr + row * d + ds, x.to(tl.float32), mask=ds < d)
    tl.store(position_ptr + row, place)
    if GUIDED:
        tl.store(residual_ptr + (row + b) * d + ds, x.to(tl.float32), mask=ds < d)
        tl.store(position_ptr + row + b, place)


def draw(buffers: DrawBuffers, table: Tensor, places: Tensor, rule: DrawRule, chosen: Tensor | None = None) -> None:
    """Draw a token, then do what draw.advance does. Where `rule` ranks scores, `chosen` (b) int64 is given instead."""
    t = buffers
    v, d = t.logits.shape[1], table.shape[1]
    b = t.count.shape[0]
    block = min(BLOCK, triton.next_power_of_2(rule.limit))
    choice = "given" if chosen is not None else "greedy" if rule.temperature == 0 else "draw"
    _draw[(b,)](
        t.logits, t.seen if t.seen is not None else t.count, t.uniform, t.count if chosen is None else chosen,
        t.tokens, t.count, t.position, table, places, t.residual, b, v, rule.limit,
        rule.guidance, rule.penalty, rule.temperature or 1.0, rule.min_p, d, len(places) - 1,
        CHOICE=choice, GUIDED=rule.guided, PENALIZED=t.seen is not None, RING=len(t.tokens),
        BLOCK=block, BLOCKS=triton.next_power_of_2(triton.cdiv(rule.limit, block)), LINE=min(LINE, block),
        D=triton.next_power_of_2(d), num_warps=WARPS,
    )  # fmt: skip
