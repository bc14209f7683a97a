"""The end of a decoding step, from a chosen token to the next step's input, in plain PyTorch; its settings and memory.

How a token is chosen from scores is in engine/sampling.py; ops/triton_draw.py does both, held to these two by tests.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class DrawRule:
    """The sampling settings that are fixed in a recorded step."""

    temperature: float  # 0: the likeliest
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    penalty: float = 1.0  # of repetition; 1: off
    guidance: float = 1.0  # 1: off
    limit: int = 0  # ids from here on are never drawn

    @property
    def guided(self) -> bool:
        """Whether each sequence has a second row, without its caption."""
        return self.guidance != 1

    @property
    def ordered(self) -> bool:
        """Whether scores have to be ranked."""
        return self.temperature > 0 and (0 < self.top_k < self.limit or self.top_p < 1)


@dataclass
class DrawBuffers:
    """Memory that the end of a step reads and writes, for b sequences (2b rows with guidance) and a ring of t steps."""

    logits: Tensor  # (rows v) float32
    seen: Tensor | None  # (b v) int8, 1 where the token was written; only where repetition is penalized
    uniform: Tensor  # (t b) float64 in [0,1), step i in slot i % t
    tokens: Tensor  # (t b) int64, step i in slot i % t
    count: Tensor  # (b) int64, tokens drawn
    position: Tensor  # (rows) int64, of the token that is read next
    residual: Tensor  # (rows d) float32, that token embedded


def advance(buffers: DrawBuffers, table: Tensor, places: Tensor, chosen: Tensor) -> None:
    """Record the chosen tokens (b) and make them the next step's input, in place.

    table (v d) embeds them, places (positions d) is added; both have the model's dtype.
    """
    t = buffers
    b = len(chosen)
    slot = (t.count % len(t.tokens))[None]
    t.tokens.scatter_(0, slot, chosen[None])
    t.count += 1
    if t.seen is not None:
        t.seen.scatter_(1, chosen[:, None], 1)
    t.position += 1
    twice = len(t.position) // b
    # clamped: a few steps still run after a sequence's last token, until the stop is noticed
    place = t.position.clamp(max=len(places) - 1)
    t.residual.copy_(table[chosen.repeat(twice)] + places[place])


def uniform_now(buffers: DrawBuffers) -> Tensor:
    """The uniform numbers (b) of this step."""
    t = buffers
    return t.uniform.gather(0, (t.count % len(t.uniform))[None])[0]
