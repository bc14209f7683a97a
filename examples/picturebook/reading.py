"""Reads a drawing without any model: which ground, and which canonical picture stands where. Knows no prompt.

A caption for drawing means one drawing to the pixel, so what is on a canvas can be looked up: of all the canonical
layouts, and all looks of all things, the reading is what leaves least of the canvas's colour unexplained.
"""

from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

import layouts
from palette import COLOUR_NAMES, COLOURS, Rgb
from pictures import Pictures
from scenes import CANVAS_PX, PLAIN_HANDS, SOLID_STYLE, Thing, box_of, thing_image
from splits import TRAIN

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the canvas
BORDER_PX = 2  # wide: where the ground is looked for
INK = 48.0  # RGB distance to the ground from which a pixel is drawn on; the image tokenizer's noise stays below
OCCUPIED = 0.02  # of a square's pixels must be ink
COARSE_PX = 16  # side of the pictures that the search starts with
SHRUNK_PX = 32  # side that they are tinted at; a multiple of COARSE_PX
SHORTLIST = 12  # looks that are compared pixel by pixel
LAYOUTS_TRIED = 4
SHIFT_PX = 3  # a thing may stand so far off its square


def _canonical_boxes() -> tuple[tuple[Box, ...], ...]:
    """The squares of every way to stand that a caption for drawing can ask for, each once."""
    ones = [layouts.canonical_one(size, None) for size in (None, "small", "big")]
    twos = [layouts.canonical_two("left_right", big) for big in (None, 0, 1)]
    corners = [layouts.canonical_one("small", corner) for corner in layouts.CORNERS]
    ways = [*ones, *corners, *twos, layouts.canonical_two("above_below", None), layouts.canonical_row()]
    ways += layouts.CANONICAL_GROUPS.values()
    return tuple(dict.fromkeys(tuple(box_of(square) for square in squares) for squares in ways))


LAYOUTS = _canonical_boxes()


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A thing that was read from a drawing."""

    thing: Thing  # how it would be drawn alone; its box is the one it was read in
    square: Box  # the layout's square; the thing may stand a little off it
    fit: float  # share of the square's colour, as squared distance to the ground, that the thing explains; at most 1


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What is on a canvas."""

    ground: str  # name of the nearest colour
    rgb: Rgb  # its own shade
    offset: np.ndarray = field(repr=False)  # (h w 3) float32: each pixel's difference to the ground
    things: tuple[Seen, ...]  # in reading order, as in a scene
    stray: float  # share of the canvas that is ink and in none of the layout's squares


def look_key(thing: Thing) -> tuple[str, str, str | None]:
    """What tells looks apart: concept id, set and tint."""
    return thing.concept.id, thing.style, thing.tint


def all_looks(pictures: Pictures) -> list[Thing]:
    """Every way to draw a thing: by each set, and in shades of each colour as captions for drawing ask for it.

    Most of the sets are asked for by no caption: they are there to be told from what is.
    """
    whole = (0, 0, CANVAS_PX, CANVAS_PX)
    looks = []
    for concept in pictures.pool(TRAIN, "any"):
        rows = pictures.styles(concept.id, TRAIN)
        plain = next((style for style in PLAIN_HANDS if style in rows), None)
        tints = COLOUR_NAMES if concept.tintable and plain is not None else ()
        wanted = [*((style, None) for style in (*PLAIN_HANDS, SOLID_STYLE)), *((plain, tint) for tint in tints)]
        looks += [
            Thing(
                concept=concept, picture=rows[style][0], style=style, tint=tint,
                rgb=None if tint is None else COLOURS[tint], box=whole, mirrored=False,
            )
            for style, tint in wanted
            if style in rows
        ]  # fmt: skip
    return looks


class Reader:
    """Reads drawings: holds every look, coarsely.

    >>> Reader(Pictures.open(Path("data"))).read(Image.open("fox.png"))  # doctest: +SKIP
    """

    def __init__(self, pictures: Pictures) -> None:
        """Draws all looks, coarsely: seconds for the whole PictureBook."""
        self.pictures = pictures
        self.looks = all_looks(pictures)
        self._rows = {look_key(look): row for row, look in enumerate(self.looks)}
        # Shrunk before they are tinted: a tenth of the time, and the search compares whole pictures in the end.
        small = Pictures(rgba=_shrunk(pictures.rgba), listed=pictures.listed, contrast=pictures.contrast)
        coarse = np.stack([_coarse(thing_image(look, small, SHRUNK_PX)) for look in self.looks])
        self._paint = coarse[..., :3].reshape(len(coarse), -1)  # (looks, cells * 3), colour times alpha
        self._alpha = coarse[..., 3].copy()  # (looks, cells)
        self._energies = lru_cache(maxsize=64)(self._energies_on)
        self.drawn = lru_cache(maxsize=512)(self._drawn)  # half a megabyte each

    def read(self, image: Image.Image) -> Reading:
        """The best reading of a drawing of 128 x 128 pixels. Raises ValueError for another size."""
        if image.size != (CANVAS_PX, CANVAS_PX):
            raise ValueError(f"a drawing has {CANVAS_PX} x {CANVAS_PX} pixels, not {image.size}")
        pixels = np.asarray(image.convert("RGB")).astype(np.float32)
        ground, rgb = find_ground(pixels)
        offset = pixels - np.array(rgb, np.float32)  # (h w 3)
        ink = np.linalg.norm(offset, axis=-1) > INK
        used = {way: tuple(box for box in way if _inside(ink, box).mean() > OCCUPIED) for way in LAYOUTS}
        rough = {box: self._shortlist(offset, rgb, box) for box in set().union(*used.values())}
        tried = sorted(LAYOUTS, key=lambda way: sum(rough[box][0] for box in used[way]))[-LAYOUTS_TRIED:]
        exact = {box: self._closest(offset, rgb, box, rough[box][1]) for way in tried for box in used[way]}
        best = max(tried, key=lambda way: sum(exact[box][0] for box in used[way]))
        for left, top, right, bottom in best:
            _inside(ink, (left - SHIFT_PX, top - SHIFT_PX, right + SHIFT_PX, bottom + SHIFT_PX))[:] = False
        things = tuple(exact[box][1] for box in used[best])
        return Reading(ground=ground, rgb=rgb, offset=offset, things=things, stray=float(ink.mean()))

    def fit(self, reading: Reading, thing: Thing, square: Box) -> float:
        """How much of the colour in a square that was read another look would explain, at most 1."""
        return self._closest(reading.offset, reading.rgb, square, [self._rows[look_key(thing)]])[1].fit

    def _shortlist(self, offset: np.ndarray, rgb: Rgb, box: Box) -> tuple[float, list[int]]:
        """The likeliest looks in a square, and how much of its energy the likeliest explains."""
        side = box[2] - box[0]
        shrink = _averages(side)
        seen = (shrink @ np.tensordot(shrink, _inside(offset, box), 1)).reshape(-1, 3)  # (cells 3)
        gain = 2 * (self._paint @ seen.ravel() - self._alpha @ (seen @ np.array(rgb, np.float32))) - self._energies(rgb)
        count = min(SHORTLIST, len(gain))
        best = np.argpartition(gain, -count)[-count:]
        return float(gain[best].max()) * (side / COARSE_PX) ** 2, best.tolist()

    def _closest(self, offset: np.ndarray, rgb: Rgb, box: Box, rows: list[int]) -> tuple[float, Seen]:
        """The look that explains most of a square, pixel by pixel and a little shifted, and how much."""
        left, top, right, bottom = box
        side = right - left
        room = (SHIFT_PX, SHIFT_PX)
        around = np.pad(offset, (room, room, (0, 0)))[top : bottom + 2 * SHIFT_PX, left : right + 2 * SHIFT_PX]
        windows = sliding_window_view(around, (side, side), axis=(0, 1)).transpose(0, 1, 3, 4, 2)  # (dy dx h w 3)
        windows = windows.reshape(-1, side * side * 3)
        drawn = np.stack([self.drawn(row, side, rgb).ravel() for row in rows])
        gain = 2 * windows @ drawn.T - (drawn**2).sum(1)  # (shifts, looks)
        shift, place = divmod(int(gain.argmax()), len(rows))
        dy, dx = (step - SHIFT_PX for step in divmod(shift, 2 * SHIFT_PX + 1))
        thing = replace(self.looks[rows[place]], box=(left + dx, top + dy, right + dx, bottom + dy))
        explained = float(gain[shift, place])
        return explained, Seen(thing=thing, square=box, fit=explained / max(float((windows[shift] ** 2).sum()), 1.0))

    def _energies_on(self, rgb: Rgb) -> np.ndarray:
        """Squared distance of every coarse look to a ground, (looks)."""
        cells = self._paint.reshape(len(self.looks), -1, 3) - self._alpha[..., None] * np.array(rgb, np.float32)
        return (cells**2).sum((1, 2))

    def _drawn(self, row: int, side_px: int, rgb: Rgb) -> np.ndarray:
        """A look on a ground as the difference to it, (side_px side_px 3) float32."""
        return _difference(thing_image(self.looks[row], self.pictures, side_px), rgb)


def find_ground(pixels: np.ndarray) -> tuple[str, Rgb]:
    """The colour name that most of the border is nearest to, and those pixels' median; pixels (h w 3) float32."""
    edge = np.ones(pixels.shape[:2], bool)
    edge[BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX] = False
    border = pixels[edge]  # (n 3)
    named = ((border[:, None] - np.array(list(COLOURS.values()), np.float32)) ** 2).sum(-1).argmin(1)
    number = int(np.bincount(named).argmax())
    red, green, blue = (round(float(value)) for value in np.median(border[named == number], axis=0))
    return COLOUR_NAMES[number], (red, green, blue)


def _inside(canvas: np.ndarray, box: Box) -> np.ndarray:
    """The part of a canvas in a box, which may reach over its edges; a view."""
    left, top, right, bottom = box
    return canvas[max(0, top) : bottom, max(0, left) : right]


def _difference(image: Image.Image, rgb: Rgb) -> np.ndarray:
    """What a picture with alpha changes of a ground, (h w 3) float32."""
    rgba = np.asarray(image).astype(np.float32)
    return (rgba[..., :3] - np.array(rgb, np.float32)) * (rgba[..., 3:] / 255)


def _shrunk(rgba: np.ndarray) -> np.ndarray:
    """Pictures (N h h 4) uint8 at a side of SHRUNK_PX; colours weigh by alpha."""
    factor = rgba.shape[1] // SHRUNK_PX
    return np.stack([np.asarray(Image.fromarray(picture).reduce(factor)) for picture in rgba])


def _coarse(image: Image.Image) -> np.ndarray:
    """Means over cells of colour times alpha and of alpha, (cells 4) float32; alpha 0 to 1."""
    rgba = np.asarray(image).astype(np.float32)
    alpha = rgba[..., 3:] / 255
    cell = SHRUNK_PX // COARSE_PX
    cells = np.concatenate((rgba[..., :3] * alpha, alpha), -1).reshape(COARSE_PX, cell, COARSE_PX, cell, 4)
    return cells.mean((1, 3)).reshape(-1, 4)


@lru_cache(maxsize=16)
def _averages(side_px: int) -> np.ndarray:
    """The matrix (COARSE_PX side_px) float32 that takes means over equal lengths of a line of pixels."""
    edges = np.arange(side_px * COARSE_PX).reshape(COARSE_PX, side_px) // COARSE_PX  # the pixel of each small part
    return np.stack([np.bincount(part, minlength=side_px) for part in edges]).astype(np.float32) / side_px
