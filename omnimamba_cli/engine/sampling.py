"""The next token from scores: filters in a fixed order, then one uniform number a token."""

from collections.abc import Sequence

import torch
from torch import Tensor

from omnimamba_cli.config import SamplingConfig
from omnimamba_cli.errors import DeviceError


def uniforms(seeds: list[int], steps: int) -> Tensor:
    """One number in [0,1) per row and step (b steps), float64 on the CPU.

    Each row has a generator of its own, so what it draws does not depend on the batch, nor on the device.
    """
    rows = [
        torch.rand(steps, generator=torch.Generator().manual_seed(s % (1 << 63)), dtype=torch.float64) for s in seeds
    ]
    return torch.stack(rows)


def check_finite(finite: Tensor | bool) -> None:
    """Raises DeviceError where a float16 model's scores are not `finite`: it ends at 65,504."""
    if not finite:
        raise DeviceError("this model's numbers do not fit float16: its scores are infinite", hint="--dtype bf16")


def guided(logits: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance: logits (2b v), captioned rows first, then the same without, to (b v)."""
    captioned, empty = logits.chunk(2)
    return empty + guidance * (captioned - empty)


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Scores (b v) of tokens in seen (b v, bool) made worse: divided when positive, multiplied when negative.

    Source: Keskar et al. 2019, arXiv:1909.05858, each token once.
    """
    worse = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, worse, logits)


def probabilities(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Scores (b v) to the probabilities (b v) that are drawn from: temperature, top-k, top-p, min-p, in this order.

    min-p is a share of the likeliest token's probability. The likeliest token always stays. float32.
    """
    scores = logits.float() / config.temperature
    if 0 < config.top_k < scores.shape[-1]:
        least = scores.topk(config.top_k, dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    p = scores.softmax(-1)
    if config.top_p < 1:
        ranked, order = p.sort(dim=-1, descending=True)
        before = ranked.cumsum(-1) - ranked
        drop = torch.zeros_like(p, dtype=torch.bool).scatter(-1, order, before >= config.top_p)
        p = p.masked_fill(drop, 0.0)
    if config.min_p > 0:
        p = p.masked_fill(p < config.min_p * p.amax(-1, keepdim=True), 0.0)
    return p / p.sum(-1, keepdim=True)


def choose(logits: Tensor, config: SamplingConfig, uniform: Tensor | None) -> Tensor:
    """One token (b) a row of scores (b v): the best when temperature is 0, else drawn with uniform (b)."""
    if config.temperature == 0 or uniform is None:
        return logits.argmax(-1)
    total = probabilities(logits, config).to(uniform.dtype).cumsum(-1)
    # scaled by the sum, and below 1: rounding must not land above the last token that may be drawn
    below = uniform.to(total.device).clamp(max=1 - 2**-24)
    point = (below * total[:, -1])[:, None]
    return torch.searchsorted(total, point, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def new_seed() -> int:
    """A random seed of 31 bits, for callers that were given none."""
    return int(torch.empty((), dtype=torch.int64).random_(1 << 31, generator=_entropy()).item())


def seeds_of(seed: int | Sequence[int] | None, count: int) -> list[int]:
    """A seed for each of `count` results: `seed`, seed + 1, ..., or the sequence that is given."""
    if isinstance(seed, Sequence):
        if len(seed) != count:
            raise ValueError(f"{count} results, but {len(seed)} seeds: give one each")
        return list(seed)
    base = new_seed() if seed is None else seed
    return [base + i for i in range(count)]


def candidate_seed(seed: int, number: int) -> int:
    """Seed of a picture's candidate. Number 0 has the picture's own seed, so it is always among the candidates."""
    return (seed + number * 0x9E3779B97F4A7C15) % (1 << 63)


def _entropy() -> torch.Generator:
    generator = torch.Generator()
    generator.seed()
    return generator
