"""Things by another hand and in shades of one colour, made by the batch for the vision tower."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "picturebook"))

import concepts
import palette
import splits
import tower
import tower_hands
from fetch import SETS
from omnimamba_cli.model.vision import VisionTowers
from omnimamba_cli.presets import preset
from pictures import STYLE_NUMBER, Pictures
from train_tower import HEADS_FIRST, WARMUP, rates

torch.set_num_threads(1)
CPU = torch.device("cpu")
SOME = 40  # pictures in a test
ALL = torch.ones(SOME, dtype=torch.bool)
NONE = ~ALL


def drawings(n: int) -> np.ndarray:
    """Smooth blobs of random colours with soft edges; (n 128 128 4) uint8, straight alpha."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:128, :128] / 63.5 - 1
    pictures = np.zeros((n, 128, 128, 4), np.uint8)
    for picture in pictures:
        waves = rng.normal(size=(3, 2, 1, 1)) * 4
        colours = 0.5 + 0.5 * np.sin(waves[:, 0] * x + waves[:, 1] * y + rng.uniform(0, 6, (3, 1, 1)))
        picture[..., :3] = (255 * colours).transpose(1, 2, 0)
        picture[..., 3] = 255 * np.clip(30 * (rng.uniform(0.5, 0.8) - np.hypot(x, y * rng.uniform(1, 2))), 0, 1)
    return pictures


@pytest.fixture(scope="module")
def things() -> tuple[torch.Tensor, torch.Tensor]:
    """Paint and alpha of some drawings, as redrawn takes them."""
    rgba = torch.from_numpy(drawings(SOME)).permute(0, 3, 1, 2).float() / 255
    return rgba[:, :3], rgba[:, 3:]


@pytest.fixture(scope="module")
def scenes() -> tower.DeviceScenes:
    """Every fifth concept in every set, a drawing or a glyph."""
    listed = [(c.id, style) for style in SETS for c in concepts.load_concepts()[::5]]
    shapes = drawings(7)
    return tower.DeviceScenes(Pictures.from_arrays(shapes[np.arange(len(listed)) % len(shapes)], listed), CPU)


def test_shades_are_those_of_the_drawings() -> None:
    rgba = np.concatenate(
        [drawings(24), np.zeros((1, 128, 128, 4), np.uint8), np.full((1, 128, 128, 4), 255, np.uint8)]
    )
    names = [palette.COLOUR_NAMES[i % len(palette.COLOUR_NAMES)] for i in range(len(rgba))]
    colours = [palette.COLOURS[name] for name in names]
    expected = np.stack([palette.recoloured(picture, rgb) for picture, rgb in zip(rgba, colours, strict=True)])
    made = tower_hands.in_shades(
        torch.from_numpy(rgba).permute(0, 3, 1, 2)[:, :3].float() / 255,
        tower_hands.shade_ranges(list(rgba)),
        torch.tensor(colours) / 255,
    )
    off = (made.permute(0, 2, 3, 1) * 255).numpy() - expected[..., :3]
    shown = rgba[..., 3] > 0
    assert -0.01 < off[shown].min() <= off[shown].max() < 1.01  # palette.recoloured cuts the rest off


def test_a_thing_that_is_not_redrawn_stays(things: tuple[torch.Tensor, torch.Tensor]) -> None:
    paint, alpha = things
    torch.manual_seed(1)
    same = tower_hands.redrawn(paint, alpha, tower_hands.draw_hands(NONE, ALL))
    assert torch.allclose(same, torch.cat([paint * alpha, alpha], 1), atol=1e-5)


@pytest.mark.parametrize("side", [128, 64])
def test_another_hand_draws_otherwise_in_the_same_place(side: int, things: tuple[torch.Tensor, torch.Tensor]) -> None:
    paint, alpha = (torch.nn.functional.interpolate(part, size=side, mode="area") for part in things)
    torch.manual_seed(2)
    drawn = tower_hands.redrawn(paint, alpha, tower_hands.draw_hands(ALL, ALL))
    colour, cover = drawn[:, :3], drawn[:, 3:]
    assert 0 <= float(drawn.min()) <= float(drawn.max()) <= 1 + 1e-5
    assert bool((colour <= cover + 1e-5).all()), "colours are times alpha"
    assert bool((cover >= alpha - 1e-5).all())
    ink, covered = alpha > 0.5, cover > 0.5
    grown = covered.sum((1, 2, 3)) / ink.sum((1, 2, 3))
    assert float(grown.max()) < 1.3
    assert float((grown > 1.01).float().mean()) > 0.2, "outlines lie around the drawing"
    changed = (colour - paint * alpha).abs().mean((1, 2, 3)) > 1e-3
    assert float(changed.float().mean()) > 0.8


def test_an_outline_is_dark_and_counted_as_ink(things: tuple[torch.Tensor, torch.Tensor]) -> None:
    paint, alpha = things
    torch.manual_seed(3)
    hand = tower_hands.draw_hands(ALL, ALL)
    ones = torch.ones(SOME)
    hand = dataclasses.replace(hand, shadow=0 * ones)
    drawn = tower_hands.redrawn(paint, alpha, dataclasses.replace(hand, rim=ones, lines=0 * ones, thick=ones))
    beyond = (drawn[:, 3] > 0.9) & (alpha[:, 0] < 0.02)
    assert bool(beyond.any((1, 2)).all())
    dark = (drawn[:, :3].amax(1) <= 0.4) | ~beyond
    assert bool(dark.all())
    plain = tower_hands.redrawn(paint, alpha, dataclasses.replace(hand, rim=0 * ones, lines=0 * ones))
    assert torch.allclose(plain[:, 3:], alpha, atol=1e-6)


def test_a_shadow_lies_behind_the_lower_edge_and_has_no_colour(things: tuple[torch.Tensor, torch.Tensor]) -> None:
    paint, alpha = things
    torch.manual_seed(9)
    hand = tower_hands.draw_hands(ALL, ALL)
    zeros = torch.zeros(SOME)
    plain = dataclasses.replace(hand, rim=zeros, lines=zeros, shadow=zeros)
    without, drawn = (
        tower_hands.redrawn(paint, alpha, one) for one in (plain, dataclasses.replace(plain, shadow=zeros + 0.2))
    )
    assert torch.equal(drawn[:, :3], without[:, :3])
    more = drawn[:, 3] - without[:, 3]
    assert 0 <= float(more.min()) <= float(more.max()) <= 0.2 + 1e-6
    shaded = more > 0.01
    assert float(shaded.any((1, 2)).float().mean()) > 0.8
    half = shaded.shape[1] // 2
    ink = (alpha[:, 0] > 0.5).any(2)
    middle = (ink.int().argmax(1) + shaded.shape[1] - 1 - ink.flip(1).int().argmax(1)) // 2
    assert not any(bool(one[: min(int(at), half)].any()) for one, at in zip(shaded, middle, strict=True))


def test_a_thing_named_by_its_colour_keeps_it(things: tuple[torch.Tensor, torch.Tensor]) -> None:
    paint, alpha = things
    torch.manual_seed(8)
    hand = tower_hands.draw_hands(ALL, NONE)
    assert float(hand.rim.max()) > 0
    drawn = tower_hands.redrawn(paint, alpha, dataclasses.replace(hand, rim=torch.zeros(SOME), lines=torch.zeros(SOME)))
    assert torch.allclose(drawn[:, :3], paint * alpha, atol=1e-5)


def test_bending_leaves_what_is_outside_outside() -> None:
    torch.manual_seed(4)
    _, bends = tower_hands.leaning(200, CPU)
    line = torch.linspace(-9, 9, 91)
    places = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).expand(200, 91, 91, 2)
    moved = tower_hands.bent(places, bends)
    far = (places.abs() > 1.35).any(-1)
    assert bool((moved[far].abs() >= 1).any(-1).all())
    assert float((moved - places)[~far].abs().max()) < 0.35
    straight = bends[:, 0] == 0
    assert 0.2 < float(straight.float().mean()) < 0.6
    assert torch.equal(moved[straight], places[straight])


def test_a_scene_has_drawings_in_shades_but_never_in_a_held_out_one(scenes: tower.DeviceScenes) -> None:
    torch.manual_seed(5)
    table = concepts.load_concepts()
    shaded = set()
    for _ in range(6):
        _, labels = scenes.sample(64)
        found = (labels.tint >= 0) & (labels.style != STYLE_NUMBER[tower.GLYPH_STYLE])
        shaded |= set(zip(labels.concept[found].tolist(), labels.tint[found].tolist(), strict=True))
    assert len(shaded) > 10
    for concept, tint in shaded:
        assert table[concept].tintable
        assert not splits.unseen_tint(table[concept].id, palette.COLOUR_NAMES[tint])


def test_shades_have_their_colour_in_the_picture(scenes: tower.DeviceScenes) -> None:
    torch.manual_seed(6)
    row = int((~scenes.glyph).nonzero()[0])
    tint = torch.arange(len(palette.COLOURS))
    for fine in (True, False):
        drawn = scenes._drawn(torch.full_like(tint, row), tint, fine=fine)
        middle = drawn[:, :3].sum((2, 3)) / drawn[:, 3:].sum((2, 3))
        assert torch.equal(torch.cdist(middle, scenes.palette).argmin(1)[3:], tint[3:])  # all but the grays


def test_fresh_heads_learn_before_a_trained_tower_moves() -> None:
    peak = 2e-3
    assert rates(0, 0.0, peak, started=True)[0] == rates(HEADS_FIRST - 1, 0.0, peak, started=True)[0] == 0
    assert 0 < rates(HEADS_FIRST, 0.0, peak, started=True)[0] < rates(HEADS_FIRST, 0.0, peak, started=True)[1]
    assert rates(HEADS_FIRST + WARMUP, 0.0, peak, started=True) == (peak, peak)
    fresh = rates(10, 0.0, peak, started=False)
    assert 0 < fresh[0] == fresh[1] < peak
    assert rates(5000, 1.0, peak, started=True) == (0, 0)


def test_a_tower_that_leaves_blocks_out_has_the_same_weights() -> None:
    configs = preset("nano").towers
    some = tuple(dataclasses.replace(one, options={**one.options, "drop_path_rate": 0.1}) for one in configs)
    torch.manual_seed(7)
    plain, leaving = VisionTowers(configs), VisionTowers(some)
    leaving.load_state_dict(plain.state_dict())
    pixels = torch.rand(2, 3, 128, 128)
    assert torch.equal(plain(pixels), leaving(pixels))
    assert not torch.equal(plain(pixels), leaving.train()(pixels))
