"""Labelled scenes for training a vision tower, composed on its own device: no file, no waiting for processors.

The same world as scenes.py (trained pictures only, no unseen pair, tint or ground, things that stand out from the
ground) in four plain layouts, a batch at a time as tensors: many things by other hands (tower_hands.py), some in
shades of one colour. b pictures a batch, k places a picture, s pixels a side.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from palette import COLOUR_NAMES, COLOURS, MIN_CONTRAST
from pictures import STYLE_NUMBER, Pictures
from scenes import GLYPH_STYLE
from splits import held_out_picture, unseen_ground, unseen_pair, unseen_tint
from tower_hands import bent, draw_hands, in_shades, leaning, redrawn, shade_ranges

PLACES = 4  # most things in a picture
MIN_INK = 0.15  # part of a cell that must be ink for it to belong to a thing
LAYOUTS = (0.38, 0.25, 0.19, 0.18)  # shares of one thing, two halves, four quarters, three in a line
OTHER_HAND_SHARE, SHADED_SHARE = 0.6, 0.06  # of the things that are no glyphs


@dataclass(frozen=True)
class Labels:
    """What is in each cell of a grid: class numbers (b g g), -1 where nothing is, and the ground (b)."""

    concept: Tensor
    style: Tensor
    tint: Tensor
    ground: Tensor


class DeviceScenes:
    """All trained pictures in a device's memory, and batches of scenes made of them."""

    def __init__(self, pictures: Pictures, device: torch.device, *, size_px: int = 128, grid: int = 8) -> None:
        self.size_px, self.grid, self.device = size_px, grid, device
        concepts = pictures.concepts
        number = {concept.id: concept.index for concept in concepts}
        kept = [
            row
            for row, (concept, style) in enumerate(pictures.listed)
            if not held_out_picture(concept, style) and (style != GLYPH_STYLE or concepts[number[concept]].tintable)
        ]
        rgba = torch.stack([torch.from_numpy(pictures.rgba[row].copy()) for row in kept]).permute(0, 3, 1, 2)
        self.fine = rgba.contiguous().to(device)  # (N 4 128 128) uint8, straight alpha
        halves = [_premultiplied(part) for part in self.fine.split(256)]
        self.coarse = torch.cat([(F.avg_pool2d(part.float(), 2) * 255).to(torch.uint8) for part in halves])
        self.concept = torch.tensor([number[pictures.listed[row][0]] for row in kept], device=device)
        self.style = torch.tensor([STYLE_NUMBER[pictures.listed[row][1]] for row in kept], device=device)
        far = torch.tensor([pictures.contrast[row] for row in kept], device=device)
        self.glyph = self.style == STYLE_NUMBER[GLYPH_STYLE]
        self.ranges = shade_ranges([pictures.rgba[row] for row in kept]).to(device)
        self.seen_on = far >= MIN_CONTRAST  # (N colours)
        self.palette = torch.tensor(list(COLOURS.values()), device=device) / 255
        self.tint_seen = torch.cdist(self.palette * 255, self.palette * 255) >= MIN_CONTRAST
        ids = [concept.id for concept in concepts]
        upper = _table(device, [[i < j and unseen_pair(a, b) for j, b in enumerate(ids)] for i, a in enumerate(ids)])
        self.pair_held = upper | upper.T  # (concepts concepts)
        self.ground_held = _table(device, [[unseen_ground(i, c) for c in COLOUR_NAMES] for i in ids])
        self.tint_held = _table(device, [[unseen_tint(i, c) for c in COLOUR_NAMES] for i in ids])
        self.joins = _table(device, [concept.joins for concept in concepts])
        self.tintable = _table(device, [concept.tintable for concept in concepts])
        # every concept alike, whatever the number of its pictures
        self.weights = 1 / torch.bincount(self.concept, minlength=len(ids)).clamp_min(1)[self.concept].float()

    @torch.no_grad()
    def sample(self, b: int) -> tuple[Tensor, Labels]:
        """b scenes: pixels (b 3 s s) float32 in [0,1] and their labels. Random numbers are the device's own."""
        rows = torch.multinomial(self.weights, b * PLACES, replacement=True).view(b, PLACES)
        x, y, side, used, alike = self._layout(b)
        rows = torch.where(alike, rows[:, :1], rows)
        tint, ground, used = self._colours(rows, used)
        jitter = 0.04 * (2 * torch.rand(b, 3, device=self.device) - 1)
        canvas = (self.palette[ground] + jitter).clamp(0, 1)[:, :, None, None].expand(b, 3, self.size_px, self.size_px)
        covers = []
        for place in range(PLACES):
            canvas, ink = self._paste(canvas, rows[:, place], tint[:, place], x, y, side, used, place)
            covers.append(F.adaptive_avg_pool2d(ink, self.grid)[:, 0])  # (b g g)
        best, winner = torch.stack(covers, 1).max(1)
        bare = best < MIN_INK

        def label(values: Tensor) -> Tensor:
            picked = values.gather(1, winner.flatten(1)).view_as(winner)
            return picked.masked_fill(bare, -1)

        return canvas, Labels(label(self.concept[rows]), label(self.style[rows]), label(tint), ground)

    def _layout(self, b: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Centres and sides in parts of the canvas, which places are used, and which repeat the first (b k)."""
        rand = torch.rand(5, b, PLACES, device=self.device)
        kind = torch.multinomial(torch.tensor(LAYOUTS, device=self.device), b, replacement=True)[:, None]
        place = torch.arange(PLACES, device=self.device)[None]
        across = rand[4, :, :1] < 0.5  # things in a line stand side by side, or one above the other
        line_of = torch.tensor((1, 2, 2, 3), device=self.device)[kind]  # how many a line holds
        along = (place % line_of + 0.5) / line_of
        other = torch.where(kind == 2, (place // 2 + 0.5) / 2, 0.5)
        room = 1 / line_of  # the square a thing may fill
        one = kind == 0
        smallest = torch.tensor((0.3, 0.24, 0.24, 0.18), device=self.device)[kind]
        side = smallest + (room * torch.where(one, 0.95, 0.97) - smallest) * rand[0]
        aside = torch.where(kind == 3, 0.5, room)  # a line of three leaves most of the canvas bare
        x_line = across | one | (kind == 2)
        x = torch.where(x_line, along, other) + (torch.where(x_line, room, aside) - side) * (rand[1] - 0.5)
        y = torch.where(x_line, other, along) + (torch.where(x_line, aside, room) - side) * (rand[2] - 0.5)
        count = torch.tensor((1, 2, PLACES, 3), device=self.device)[kind]
        used = (place < count) & ((kind != 2) | (rand[3] < 0.75) | (place == 0))
        alike = (torch.rand(b, 1, device=self.device) < 0.4) & (kind > 0)
        return x, y, side, used, alike & (place > 0)

    def _colours(self, rows: Tensor, used: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tints (b k, -1: none), ground (b), and the places (b k) that may be shown on it beside the first."""
        concept = self.concept[rows]
        shaded = self.tintable[concept] & (torch.rand(rows.shape, device=self.device) < SHADED_SHARE)
        tinted = self.glyph[rows] | shaded
        allowed = (~self.tint_held[concept]).float().flatten(0, 1)
        tint = torch.multinomial(allowed, 1).view_as(rows)
        same = rows == rows[:, :1]
        tint, tinted = (torch.where(same, values[:, :1], values) for values in (tint, tinted))
        seen = torch.where(tinted[..., None], self.tint_seen[tint], self.seen_on[rows])  # (b k colours)
        fits = seen & ~self.ground_held[concept]
        # where nothing stands out the most distant ground is drawn by the small constant: rare, and harmless
        ground = torch.multinomial(fits[:, 0].float() + 1e-6, 1)[:, 0]
        beside = fits.gather(2, ground[:, None, None].expand(-1, PLACES, 1))[..., 0]
        joins = self.joins[concept]
        beside &= joins & joins[:, :1]
        for place in range(1, PLACES):
            for earlier in range(place):
                clash = self.pair_held[concept[:, place], concept[:, earlier]] & used[:, earlier]
                beside[:, place] &= ~(clash & (concept[:, place] != concept[:, earlier]))
        first = torch.arange(PLACES, device=self.device)[None] == 0
        return tint.masked_fill(~tinted, -1), ground, used & (first | beside)

    def _paste(
        self, canvas: Tensor, rows: Tensor, tint: Tensor, x: Tensor, y: Tensor, side: Tensor, used: Tensor, place: int
    ) -> tuple[Tensor, Tensor]:
        """The canvas (b 3 s s) with one thing more on each, and that thing's ink (b 1 s s)."""
        b = len(rows)
        scale = 1 / side[:, place]
        lean, bends = leaning(b, self.device)
        about = torch.stack([(1 - 2 * centre[:, place]) * scale for centre in (x, y)], 1)  # (b 2)
        theta = torch.cat([lean * scale[:, None, None], lean @ about[..., None]], 2)  # (b 2 3)
        grid = bent(F.affine_grid(theta, [b, 4, self.size_px, self.size_px], align_corners=False), bends)
        thing = self._drawn(rows, tint, fine=place == 0)
        if place == 0:  # only the first is ever large enough to need every pixel
            sharp = F.grid_sample(thing, grid, align_corners=False)
            soft = F.grid_sample(F.avg_pool2d(thing, 2), grid, align_corners=False)
            layer = torch.where((side[:, 0] > 0.5)[:, None, None, None], sharp, soft)
        else:
            layer = F.grid_sample(thing, grid, align_corners=False)
        layer = layer * used[:, place, None, None, None]
        ink = layer[:, 3:]
        return canvas * (1 - ink) + layer[:, :3], ink

    def _drawn(self, rows: Tensor, tint: Tensor, *, fine: bool) -> Tensor:
        """The pictures as these scenes show them, (b 4 128 128) or, coarse, (b 4 64 64): colours times alpha."""
        rgba = (self.fine if fine else self.coarse)[rows].float() / 255
        paint, alpha = rgba[:, :3], rgba[:, 3:]
        if not fine:
            paint = paint / alpha.clamp_min(1 / 255)
        glyph = self.glyph[rows]
        colour = self.palette[tint.clamp_min(0)] + 0.03 * (2 * torch.rand(len(rows), 3, device=self.device) - 1)
        colour = colour.clamp(0, 1)
        shown = torch.where(_wide(glyph), colour[:, :, None, None], in_shades(paint, self.ranges[rows], colour))
        paint = torch.where(_wide(tint >= 0), shown, paint)
        other = (tint < 0) & (torch.rand(len(rows), device=self.device) < OTHER_HAND_SHARE)
        return redrawn(paint, alpha, draw_hands(other, self.tintable[self.concept[rows]]))


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _premultiplied(rgba: Tensor) -> Tensor:
    """uint8 straight alpha (n 4 h w) to float16 in [0,1], colours times alpha: so that edges mix right."""
    alpha = rgba[:, 3:].half() / 255
    return torch.cat([rgba[:, :3].half() / 255 * alpha, alpha], 1)


def _table(device: torch.device, values: list[bool] | list[list[bool]]) -> Tensor:
    return torch.tensor(values, device=device)
