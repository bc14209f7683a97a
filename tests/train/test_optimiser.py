"""The learning rate's curve and the average of the weights."""

import math

import pytest
import torch
from torch import nn

from omnimamba_cli.train.loop_config import accelerator
from omnimamba_cli.train.optimiser import Average, adamw, clip_gradients, learning_rate


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


@pytest.mark.parametrize("largest", [0.5, 1e6])
def test_a_fused_optimizer_clips_as_clip_grad_norm_does(largest: float) -> None:
    accelerate = accelerator(torch.device("cpu"), "no")
    generator = torch.Generator().manual_seed(0)
    start, frozen = torch.randn(4, 3, generator=generator), nn.Parameter(torch.ones(2))
    found = []
    for fused in (False, True):
        weight = nn.Parameter(start.clone())
        optimizer = torch.optim.AdamW([weight, frozen], lr=0.1, fused=fused)
        generator.manual_seed(1)
        for _ in range(3):
            weight.grad = torch.randn(4, 3, generator=generator)
            norm = clip_gradients(accelerate, optimizer, [weight, frozen], largest)
            optimizer.step()
        found.append((norm, weight.detach(), weight.grad, optimizer.state[weight]["exp_avg_sq"]))
    for plain, within in zip(*found, strict=True):
        torch.testing.assert_close(plain, within, rtol=1e-6, atol=1e-7)
    assert (found[0][0] > largest) == (largest < 1)


def test_a_gradient_that_is_not_finite_is_seen_after_fused_clipping() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    weight.grad = torch.tensor([1.0, torch.inf])
    norm = clip_gradients(accelerator(torch.device("cpu"), "no"), optimizer, [weight], 1.0)
    optimizer.step()
    assert norm.isinf()
    assert weight[1].isnan()
