"""The learning rate's curve and the average of the weights."""

import math

import pytest
import torch

from omnimamba_cli.train.optimiser import Average, adamw, learning_rate


@pytest.mark.parametrize(
    ("step", "wanted"),
    [
        (0, 1 / 10),
        (9, 1.0),
        (10, 1.0),
        (55, 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * 45 / 90))),
        (100, 0.01),
        (150, 0.01),
    ],
)
def test_rate_ramps_up_and_falls_by_a_cosine_to_one_percent(step: int, wanted: float) -> None:
    assert learning_rate(step, peak=1.0, warmup=10, steps=101) == pytest.approx(wanted, abs=1e-12)


def test_rate_starts_at_the_peak_without_warm_up() -> None:
    assert learning_rate(0, peak=3e-4, warmup=0, steps=5) == 3e-4


def test_decay_is_for_matrices_alone() -> None:
    matrix, vector = (torch.nn.Parameter(torch.ones(*s)) for s in ((2, 2), (2,)))
    groups = adamw([matrix, vector], lr=1.0, weight_decay=0.1).param_groups
    assert [(g["weight_decay"], [p.ndim for p in g["params"]]) for g in groups] == [(0.1, [2]), (0.0, [1])]


def test_average_follows_the_weights_and_swaps_back() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    average = Average({"w": weight}, 0.5)
    for step in range(20, 40):
        with torch.no_grad():
            weight.fill_(1.0)
        average.update(step)
    before = weight.detach().clone()
    average.swap()
    torch.testing.assert_close(weight.detach(), torch.full((3,), 1 - 0.5**20))
    average.swap()
    assert torch.equal(weight.detach(), before)
