"""Pictures as another hand would draw them, many at once on a device: for tower.py what hands.py is for one picture.

m pictures a batch, h w pixels each; paint (m 3 h w) is colour in [0,1], not yet multiplied by alpha (m 1 h w).
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hands import INKS
from palette import LUMA, SHADES

LEAN_SHARE = 0.6  # of all things: turned, sheared, stretched and bent a little
FINE_PX = 128  # side of a picture whose outlines are two or three pixels wide; one or two in smaller ones


@dataclass(frozen=True)
class Hand:
    """How each of m pictures is redrawn. A share of 0 leaves that part as it is."""

    mix: Tensor  # (m 3 3) new colour of old
    wash: Tensor  # (m) added to every channel: white
    levels: Tensor  # (m) of a channel in flat colour, and where they start
    start: Tensor  # (m)
    flat: Tensor  # (m) 1 where the flat colours are shown
    rim: Tensor  # (m) share of ink in the outline
    lines: Tensor  # (m) share of ink where flat colours meet
    thick: Tensor  # (m) 1 where the outline is one pixel wider
    ink: Tensor  # (m 3)
    shadow: Tensor  # (m) how dark the ellipse behind its lower edge is
    shape: Tensor  # (m 3) of the ellipse: half its width in the thing's, half its height in the picture's, and its
    # middle's place under the edge in the latter


def draw_hands(drawn: Tensor, recolour: Tensor) -> Hand:
    """Hands for m pictures at random, each part by its own coin.

    Where `drawn` (m, bool) is false all stays; where `recolour` (m, bool) is, the colours: of a blue book, say.
    """
    m, device = len(drawn), drawn.device

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(m, device=device)

    def some(share: float) -> Tensor:
        return (drawn & (torch.rand(m, device=device) < share)).float()

    colours = recolour.float()
    recoloured = some(0.7) * colours
    near = torch.rand(m, device=device) < 0.75
    angle = recoloured * torch.where(near, between(-0.6, 0.6), between(-math.pi, math.pi))  # radians of hue
    strong = 1 + recoloured * between(-0.6, 0.4)  # saturation
    bright = 1 + recoloured * between(-0.3, 0.25)
    eye = torch.eye(3, device=device)
    gray = torch.full((3, 3), 1 / 3, device=device)
    across, inks = _constants(device)
    # turning about the axis of grays; the saturation is the distance from it
    cos, sin = (part[:, None, None] for part in (strong * angle.cos(), strong * angle.sin()))
    white = some(0.4) * colours * between(0.2, 0.6)
    mix = (cos * (eye - gray) + sin * across + gray) * (bright * (1 - white))[:, None, None]
    rim = some(0.7) * between(0.75, 1.0)
    return Hand(
        mix=mix,
        wash=white,
        levels=torch.randint(2, 6, (m,), device=device).float(),
        start=between(-0.5, 0.5),
        flat=some(0.6) * colours,
        rim=rim,
        lines=rim * some(0.7),
        thick=some(0.5),
        ink=inks[torch.randint(len(INKS), (m,), device=device)],
        shadow=some(0.4) * between(0.08, 0.3),
        shape=torch.stack([between(0.3, 0.6), between(0.02, 0.06), between(-1.0, 0.5)], 1),
    )


@cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """Made once: the generator of turns about the axis of grays (3 3), and the inks (n 3)."""
    across = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=device) / math.sqrt(3)
    return across, torch.tensor(INKS, device=device) / 255


def redrawn(paint: Tensor, alpha: Tensor, hand: Hand) -> Tensor:
    """Recoloured, flattened and outlined: (m 4 h w), colours times alpha. An outlined thing is a little larger."""
    paint = torch.einsum("mij,mjhw->mihw", hand.mix, paint) + _wide(hand.wash)
    paint = paint.clamp(0, 1)
    levels, start = _wide(hand.levels), _wide(hand.start)
    flat = (((paint * levels + start).round() - start) / levels).clamp(0, 1)
    paint = torch.lerp(paint, flat, _wide(hand.flat))
    luma = _luma(flat)
    step = F.max_pool2d(luma, 3, 1, 1) + F.max_pool2d(-luma, 3, 1, 1)
    lines = ((step - 0.08) * 12).clamp(0, 1) * _wide(hand.lines)
    thin, thick = (3, 5) if alpha.shape[-1] >= FINE_PX else (1, 3)
    wider = torch.lerp(_grown(alpha, thin), _grown(alpha, thick), _wide(hand.thick))
    # nothing is beyond the edge of a picture: a thing that fills it has its rim inside
    narrower = 1 - F.max_pool2d(F.pad(1 - alpha, (1, 1, 1, 1), value=1.0), 3, 1)
    rim = _wide(hand.rim)
    cover = torch.lerp(alpha, wider, rim)
    inside = torch.lerp(alpha, narrower, rim) * (1 - lines)
    painted = paint * inside + hand.ink[:, :, None, None] * (cover - inside)
    # a shadow has no colour of its own: it only covers
    return torch.cat([painted, cover + _shadow(cover, hand) * (1 - cover)], 1)


def _shadow(cover: Tensor, hand: Hand) -> Tensor:
    """An ellipse behind each thing's lower edge, as dark as the hand has it (m 1 h w)."""
    height, width = cover.shape[-2:]
    ink = cover[:, 0] > 0.5
    columns, rows = ink.any(1), ink.any(2)  # (m w), (m h)
    across, down = (torch.arange(n, device=cover.device, dtype=cover.dtype) for n in (width, height))
    left = torch.where(columns, across, width).amin(1)
    right = torch.where(columns, across, -1).amax(1)
    bottom = torch.where(rows, down, -1).amax(1)
    half, tall = hand.shape[:, 0] * (right - left).clamp_min(1), hand.shape[:, 1] * height
    x = (across - ((left + right) / 2)[:, None]) / half[:, None]
    y = (down - (bottom + hand.shape[:, 2] * tall)[:, None]) / tall[:, None]
    inside = x.square()[:, None, :] + y.square()[:, :, None] < 1
    return (inside * hand.shadow[:, None, None])[:, None]


def leaning(m: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """At random: a matrix (m 2 2) from places about a thing's middle to places in its picture, and bends (m 8)."""
    leans = (torch.rand(m, 1, device=device) < LEAN_SHARE).float()
    signed = leans * (2 * torch.rand(m, 11, device=device) - 1)
    turn = 0.15 * signed[:, 0]  # radians
    cos, sin = turn.cos(), turn.sin()
    # stretched by up to 12 % more one way than the other, never larger than its place
    wide, high = (1 + 0.06 * (leans[:, 0] + signed[:, place]) for place in (1, 2))
    across, down = 0.12 * signed[:, 3], 0.12 * signed[:, 4]
    lean = torch.stack([wide, across, down, high], 1).view(m, 2, 2)
    turned = torch.stack([cos, -sin, sin, cos], 1).view(m, 2, 2)
    # width by height, the upper half against the lower, and two waves: strength, steepness and start of each
    bends = torch.stack(
        [
            0.15 * signed[:, 5], 0.12 * signed[:, 6],
            0.06 * signed[:, 7], 2.5 + signed[:, 9], math.pi * signed[:, 10],
            0.06 * signed[:, 8], 2.5 - signed[:, 9], math.pi * signed[:, 9],
        ], 1,
    )  # fmt: skip
    return lean @ turned, bends


def bent(places: Tensor, bends: Tensor) -> Tensor:
    """Places (m h w 2) in pictures, -1 to 1, moved smoothly: other proportions. What is outside stays outside."""
    keystone, middle, wave_x, steep_x, start_x, wave_y, steep_y, start_y = bends[:, :, None, None].unbind(1)
    x, y = places.unbind(-1)
    across, down = x.clamp(-1, 1), y.clamp(-1, 1)
    new_x = x * (1 + keystone * down) + wave_x * (steep_x * down + start_x).sin()
    new_y = y + middle * (1 - down * down) + wave_y * (steep_y * across + start_y).sin()
    return torch.stack([new_x, new_y], -1)


def shade_ranges(pictures: list[np.ndarray]) -> Tensor:
    """What `palette.recoloured` reads from each picture: lowest luma, contrast, and mean place between (n 3)."""
    ranges = np.zeros((len(pictures), 3), np.float32)
    for row, rgba in enumerate(pictures):
        ink = (rgba[..., :3].astype(np.float32) @ np.array(LUMA, np.float32) / 255)[rgba[..., 3] > 128]
        if len(ink):
            low, high = np.percentile(ink, (2, 98))
            contrast = max(float(high - low), 0.15)
            ranges[row] = low, contrast, np.clip((ink - low) / contrast, 0, 1).mean()
        else:
            ranges[row] = 0, 1, 0.5
    return torch.from_numpy(ranges)


def in_shades(paint: Tensor, ranges: Tensor, colour: Tensor) -> Tensor:
    """The pictures in shades of one colour each (m 3), as `palette.recoloured` does it; ranges (m 3) of each."""
    low, contrast, middle = (_wide(part) for part in ranges.unbind(1))
    colour = colour[:, :, None, None]
    place = ((_luma(paint) - low) / contrast).clamp(0, 1)
    home = _luma(colour)
    shade = (home - middle * SHADES).clamp(0, 1 - SHADES) + SHADES * place
    dark = (shade / home.clamp_min(1e-3)).clamp(max=1)  # black to the colour, then the colour to white
    light = ((shade - home) / (1 - home).clamp_min(1e-3)).clamp_min(0)
    return (colour * dark + (1 - colour) * light).clamp(0, 1)


def _luma(paint: Tensor) -> Tensor:
    """BT.601 luma (m 1 h w)."""
    red, green, blue = LUMA
    return red * paint[:, 0:1] + green * paint[:, 1:2] + blue * paint[:, 2:3]


def _grown(alpha: Tensor, width: int) -> Tensor:
    return F.max_pool2d(alpha, width, 1, width // 2) if width > 1 else alpha


def _wide(values: Tensor) -> Tensor:
    """(m) to (m 1 1 1)."""
    return values[:, None, None, None]
