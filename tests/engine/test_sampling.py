"""The next token: each filter exactly, the numbers it draws with, and what comes out in the long run."""

import pytest
import torch
from torch import Tensor

from omnimamba_cli.config import SamplingConfig
from omnimamba_cli.engine.sampling import choose, guided, penalize_repetition, probabilities, uniforms
from tests.numerics import assert_close

P = torch.tensor([[0.5, 0.25, 0.15, 0.1]])
LOGITS = P.log()


def sampling(**values: float) -> SamplingConfig:
    return SamplingConfig(**{"temperature": 1.0, **values})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "want"),
    [
        ({}, [0.5, 0.25, 0.15, 0.1]),
        ({"temperature": 0.5}, [0.25, 0.0625, 0.0225, 0.01]),
        ({"temperature": 2.0}, [0.5**0.5, 0.5, 0.15**0.5, 0.1**0.5]),
        ({"top_k": 1}, [1, 0, 0, 0]),
        ({"top_k": 3}, [0.5, 0.25, 0.15, 0]),
        ({"top_k": 99}, [0.5, 0.25, 0.15, 0.1]),
        ({"top_p": 0.4}, [1, 0, 0, 0]),
        ({"top_p": 0.6}, [0.5, 0.25, 0, 0]),
        ({"top_p": 0.8}, [0.5, 0.25, 0.15, 0]),
        ({"top_p": 1e-6}, [1, 0, 0, 0]),
        ({"min_p": 0.25}, [0.5, 0.25, 0.15, 0]),
        ({"min_p": 0.4}, [0.5, 0.25, 0, 0]),
        ({"min_p": 1.0}, [1, 0, 0, 0]),
        # in this order: of the two that top-k leaves, the first is 2/3
        ({"top_k": 2, "top_p": 0.6}, [1, 0, 0, 0]),
        # temperature comes first: at 0.5 the second is a quarter of the first
        ({"temperature": 0.5, "min_p": 0.3}, [1, 0, 0, 0]),
        ({"top_p": 0.8, "min_p": 0.4}, [0.5, 0.25, 0, 0]),
    ],
    ids=str,
)
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 0, 2, 1]])
def test_filters(values: dict[str, float], want: list[float], order: list[int]) -> None:
    expected = torch.tensor([want])[:, order]
    got = probabilities(LOGITS[:, order], sampling(**values))
    assert_close("probabilities", expected / expected.sum(), got, 1e-6)
    assert torch.equal(got > 0, expected > 0)


def test_rows_are_filtered_apart() -> None:
    logits = torch.cat([LOGITS, LOGITS.flip(1)])
    got = probabilities(logits, sampling(top_k=2, top_p=0.9))
    assert torch.equal(got[0], got[1].flip(0))


def test_tokens_that_are_ruled_out_stay_out() -> None:
    logits = LOGITS.clone()
    logits[0, 0] = -torch.inf
    got = probabilities(logits, sampling(top_p=0.9, min_p=0.01))
    assert got[0, 0] == 0
    assert float(got.sum()) == pytest.approx(1)


def test_half_precision_scores_are_filtered_in_float32() -> None:
    got = probabilities(torch.zeros(1, 5000, dtype=torch.bfloat16), sampling(top_p=0.5))
    assert got.dtype == torch.float32
    assert int((got > 0).sum()) == pytest.approx(2500, abs=2)


# choosing


def test_temperature_zero_takes_the_best_without_drawing() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, 1.0, 0.0]])
    for uniform in (None, torch.tensor([0.99, 0.99], dtype=torch.float64)):
        assert choose(logits, SamplingConfig(), uniform).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("uniform", "token"), [(0.0, 0), (0.49, 0), (0.51, 1), (0.74, 1), (0.76, 2), (0.89, 2), (0.91, 3), (1 - 2**-53, 3)]
)
def test_a_number_picks_its_share_of_the_line(uniform: float, token: int) -> None:
    assert choose(LOGITS, sampling(), torch.tensor([uniform], dtype=torch.float64)).tolist() == [token]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("edge", ["zero", "almost one"])
def test_the_edges_never_pick_what_is_ruled_out(dtype: torch.dtype, edge: str) -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 33, generator=rng)
    logits[:, :3] = logits[:, -3:] = -torch.inf
    last = torch.nextafter(torch.ones((), dtype=dtype), torch.zeros((), dtype=dtype))
    number = torch.zeros((), dtype=dtype) if edge == "zero" else last
    tokens = choose(logits, sampling(), number.expand(64))
    assert bool((tokens == (3 if edge == "zero" else 29)).all())


@pytest.mark.parametrize("values", [{}, {"top_k": 3}, {"temperature": 2.0, "min_p": 0.1}], ids=str)
def test_draws_follow_the_probabilities(values: dict[str, float]) -> None:
    count = 40_000
    config = sampling(**values)
    tokens = choose(LOGITS.expand(count, 4), config, uniforms([7], count)[0])
    want = probabilities(LOGITS, config)[0].double() * count
    seen = tokens.bincount(minlength=4).double()
    possible = want > 0
    assert not seen[~possible].any()
    chi_square = ((seen - want)[possible].square() / want[possible]).sum()
    # 3 degrees of freedom: above 16.3 once in a thousand seeds
    assert float(chi_square) < 16.3


# numbers to draw with


def test_a_rows_numbers_depend_on_its_seed_alone() -> None:
    together = uniforms([3, 4, 5], 10)
    assert (together.shape, together.dtype) == ((3, 10), torch.float64)
    for i, seed in enumerate((3, 4, 5)):
        assert torch.equal(uniforms([seed], 10)[0], together[i])
    assert len(together.unique()) == 30


def test_longer_rows_begin_alike() -> None:
    assert torch.equal(uniforms([3], 40)[0, :10], uniforms([3], 10)[0])


def test_numbers_are_in_range_and_even() -> None:
    numbers = uniforms([1], 20_000)
    assert 0 <= float(numbers.min()) < float(numbers.max()) < 1
    assert float(numbers.mean()) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("seed", [0, -1, 1 << 62, 1 << 70])
def test_any_integer_is_a_seed(seed: int) -> None:
    assert uniforms([seed], 2).shape == (1, 2)


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    uniforms([1, 2], 5)
    assert torch.equal(torch.get_rng_state(), before)


# guidance and repetition


@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.0])
def test_guidance_goes_from_empty_through_captioned(guidance: float) -> None:
    rng = torch.Generator().manual_seed(0)
    captioned, empty = torch.randn(2, 3, 5, generator=rng).unbind()
    got = guided(torch.cat([captioned, empty]), guidance)
    assert_close("logits", (1 - guidance) * empty + guidance * captioned, got, 1e-5)


def test_repetition_makes_seen_tokens_worse_once() -> None:
    logits = torch.tensor([[2.0, -2.0, 0.0, 2.0, -2.0]])
    seen = torch.tensor([[True, True, True, False, False]])
    assert penalize_repetition(logits, seen, 2.0).tolist() == [[1.0, -4.0, 0.0, 2.0, -2.0]]


def test_a_repetition_penalty_below_one_makes_seen_tokens_better() -> None:
    logits = torch.tensor([[2.0, -2.0]])
    seen = torch.ones(1, 2, dtype=torch.bool)
    assert penalize_repetition(logits, seen, 0.5).tolist() == [[4.0, -1.0]]


def test_a_penalty_leaves_ruled_out_tokens_out() -> None:
    logits = torch.tensor([[-torch.inf, 1.0]])
    got: Tensor = penalize_repetition(logits, torch.ones(1, 2, dtype=torch.bool), 1.3)
    assert got[0, 0] == -torch.inf
