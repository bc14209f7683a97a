"""The Transformers that bench compares with compute what they should: with a cache exactly what they do without."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from omnimamba_cli.model.baseline import FixedCache, GrowingCache, Transformer, TransformerConfig, rotary_table, rotate
from tests.numerics import assert_close

LLAMA = TransformerConfig(d_model=32, n_layer=2, n_head=4, n_kv_head=4, d_ff=48, vocab_size=40)
PHI = replace(LLAMA, norm="layer", mlp="gelu", parallel=True, bias=True, rotary_share=0.5)
GROUPED = replace(LLAMA, n_kv_head=2, tied=True)
CONFIGS = pytest.mark.parametrize("config", [LLAMA, PHI, GROUPED], ids=["llama", "phi", "grouped"])
BATCH, LENGTH, SPLIT = 3, 11, 6


def model(config: TransformerConfig, dtype: torch.dtype = torch.float64) -> Transformer:
    rng = torch.Generator().manual_seed(1)
    result = Transformer(config).to(dtype).eval()
    for parameter in result.parameters():
        values = torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
        parameter.data.copy_(values / math.sqrt(parameter.shape[-1]) if parameter.ndim > 1 else 1 + 0.1 * values)
    return result


def ids() -> Tensor:
    return torch.randint(40, (BATCH, LENGTH), generator=torch.Generator().manual_seed(2))


def steps(net: Transformer, cache: GrowingCache | FixedCache, mask: Tensor | None = None) -> Tensor:
    """A prefix at once, then token by token."""
    if isinstance(cache, FixedCache):
        cache.visible = SPLIT
    parts = [net(ids()[:, :SPLIT], torch.arange(SPLIT), cache, mask)]
    for i in range(SPLIT, LENGTH):
        if isinstance(cache, FixedCache):
            cache.visible = i + 1
        parts.append(net(ids()[:, i : i + 1], torch.tensor([i]), cache))
    return net.logits(torch.cat(parts, dim=1))


@torch.inference_mode()
@CONFIGS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_a_growing_cache_gives_the_logits_of_no_cache(config: TransformerConfig, dtype: torch.dtype) -> None:
    net = model(config, dtype)
    whole = net.logits(net(ids(), torch.arange(LENGTH)))
    assert_close("logits", whole, steps(net, GrowingCache(config)), 1e-12 if dtype == torch.float64 else 1e-5)


@torch.inference_mode()
@CONFIGS
def test_a_fixed_cache_gives_the_logits_of_a_growing_one(config: TransformerConfig) -> None:
    net = model(config)
    fixed = FixedCache(config, BATCH, LENGTH + 5, torch.device("cpu"), torch.float64)
    assert_close("logits", steps(net, GrowingCache(config)), steps(net, fixed), 1e-12)


@torch.inference_mode()
def test_a_mask_over_the_whole_fixed_cache_hides_what_was_not_written() -> None:
    net = model(LLAMA)
    fixed = FixedCache(LLAMA, BATCH, LENGTH + 5, torch.device("cpu"), torch.float64)
    fixed.kv.fill_(100.0)
    positions = torch.arange(LENGTH)
    seen = torch.arange(LENGTH + 5) <= positions[:, None]
    assert_close("hidden", net(ids(), positions), net(ids(), positions, fixed, seen), 1e-12)


@torch.inference_mode()
def test_the_mask_of_pictures_and_text_allows_a_cache() -> None:
    """Show-o's attention: a picture's tokens see each other, text sees what stands before it."""
    net = model(PHI)
    seen = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    seen[1:5, 1:5] = True
    whole = net.logits(net(ids(), torch.arange(LENGTH), mask=seen))
    assert_close("logits", whole, steps(net, GrowingCache(PHI), seen[:SPLIT, :SPLIT]), 1e-12)
    causal = net.logits(net(ids(), torch.arange(LENGTH)))
    assert not torch.allclose(whole[:, 1:4], causal[:, 1:4]), "the mask does something"


def test_attention_depends_on_distance_alone() -> None:
    rng = torch.Generator().manual_seed(3)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=rng, dtype=torch.float64)

    def score(i: int, j: int) -> Tensor:
        tables = [rotary_table(LLAMA, torch.tensor([n]), torch.float64) for n in (i, j)]
        return (rotate(q, *tables[0]) * rotate(k, *tables[1])).sum()

    assert torch.allclose(score(7, 3), score(104, 100))
    assert not torch.allclose(score(7, 3), score(7, 4))


def test_several_tokens_after_others_need_a_mask() -> None:
    net, cache = model(LLAMA), GrowingCache(LLAMA)
    net(ids()[:, :4], torch.arange(4), cache)
    with pytest.raises(ValueError, match="need a mask"):
        net(ids()[:, 4:6], torch.arange(4, 6), cache)


@CONFIGS
def test_the_weights_counted_are_the_weights_there_are(config: TransformerConfig) -> None:
    net = model(config)
    matrices = {n: p.numel() for n, p in net.named_parameters() if p.ndim > 1}
    assert config.weights == sum(matrices.values())
    read = sum(n for name, n in matrices.items() if name != "embedding.weight" or config.tied)
    assert config.step_weights == read


def test_keys_and_values_counted_are_those_of_the_cache() -> None:
    cache = FixedCache(GROUPED, 1, 10, torch.device("cpu"), torch.float32)
    assert cache.kv.numel() == 10 * GROUPED.kv_values
