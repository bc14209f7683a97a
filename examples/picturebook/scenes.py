"""Scenes: what stands where, in which style, on which ground; and their pixels.

Purpose "mmu" is for looking (free layouts), "t2i" for drawing (canonical layouts). This file knows no words.
"""

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image

import layouts
from concepts import Concept, clash
from hands import by_another_hand
from palette import COLOUR_NAMES, COLOURS, MIN_CONTRAST, Rgb, distance, jitter, recoloured
from pictures import Pictures
from splits import TRAIN, belongs, unseen_ground

CANVAS_PX = 128  # boxes are in pixels of a canvas of this side
KINDS: dict[str, dict[str, float]] = {
    "mmu": {"one": 0.52, "two": 0.25, "count": 0.12, "three": 0.11},
    "t2i": {"one": 0.64, "two": 0.19, "count": 0.10, "three": 0.07},
}
# Of training alone: what is small and one of several is what a model of this size sees worst.
TRAINED_KINDS = {"one": 0.44, "two": 0.24, "count": 0.1, "three": 0.22}
# By design, not by picture: Fluent's flat and 3-D pictures are one drawing.
STYLE_WEIGHTS: dict[str, float] = {
    "noto": 25, "twemoji": 25, "noto_v1": 12, "fluent_flat": 14, "fluent_3d": 14, "fluent_hc": 10,
}  # fmt: skip
GLYPH_STYLE = "fluent_hc"  # one colour: always tinted
# In training glyphs are rarer: where one thing in seven had a tint, a model took any unknown hand's paint for one.
TRAINED_STYLE_WEIGHTS = {**STYLE_WEIGHTS, GLYPH_STYLE: 3}
SOLID_STYLE = "fluent_3d"  # drawn where a caption says "3D rendering", and nowhere else
# A thing whose caption names no style is drawn by the first hand that has it, always the same.
PLAIN_HANDS = ("twemoji", "noto", "noto_v1", "fluent_flat")
HAND_WEIGHTS: dict[str, float] = {"plain": 62, "tinted": 24, SOLID_STYLE: 14}
# Of pictures in scenes for looking: drawn in shades of one colour, as drawings are; and, in training, by another hand.
TINTED_SHARE, OTHER_HAND_SHARE = 0.05, 0.7
# A ground that no caption names: the first on which the thing is well seen.
PLAIN_GROUNDS = ("white", "light blue", "blue", "gray")
GROUND_JITTER = {"mmu": 12, "t2i": 0}
TINT_JITTER = {"mmu": 10, "t2i": 0}
BIGGER_RATIO = 1.5  # sides that differ by less are not called bigger or smaller
# Text, faces of clocks, hands and flags would be wrong in a mirror.
MIRRORED = frozenset("animal bird reptile insect fruit vegetable flower plant dessert boat".split()) | {"sea animal"}
PLAIN_SHARE = 0.5  # of drawings that stand on their plain ground
ATTEMPTS = 3000  # some splits refuse nine scenes of ten


# concept, picture row, set, tint, the tint's own shade, another hand's seed
Look = tuple[Concept, int, str, str | None, Rgb | None, int | None]


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One picture in a scene."""

    concept: Concept
    picture: int  # row of the picture cache
    style: str  # name of the set
    tint: str | None  # colour name of a glyph, or of a picture in shades of one colour
    rgb: Rgb | None  # the tint's own shade
    box: tuple[int, int, int, int]  # left, top, right, bottom in pixels of a 128 px canvas; a square
    mirrored: bool
    hand: int | None = None  # seed of another hand that drew it, see hands.py

    @property
    def side_px(self) -> int:
        """Side of the box, in pixels of a 128 px canvas."""
        return self.box[2] - self.box[0]

    @property
    def centre(self) -> tuple[float, float]:
        """Centre of the box in parts of the canvas, 0 to 1."""
        return (self.box[0] + self.box[2]) / 2 / CANVAS_PX, (self.box[1] + self.box[3]) / 2 / CANVAS_PX


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A whole picture; things stand in reading order (left to right, top to bottom)."""

    purpose: str  # "mmu" or "t2i"
    kind: str  # "one", "two", "count" or "three"
    layout: str  # "single", "left_right", "above_below", "row" or "scatter"
    things: tuple[Thing, ...]
    ground: str  # colour name
    ground_rgb: Rgb
    plain_ground: bool = False  # of a drawing: the ground that its caption need not name
    size: str | None = None  # "small" or "big", of a single thing
    corner: str | None = None  # "top left" ..., of a single small thing

    @property
    def bigger(self) -> int | None:
        """Which of two things is clearly bigger: 0, 1 or None."""
        if self.kind != "two":
            return None
        first, second = (thing.side_px for thing in self.things)
        if max(first, second) < BIGGER_RATIO * min(first, second):
            return None
        return int(second > first)


def sample_scene(rng: random.Random, pictures: Pictures, split: str, *, purpose: str, kind: str | None = None) -> Scene:
    """A random scene of a split ("train" or one of `splits.SPLITS`); `kind` fixes how many things."""
    if purpose not in KINDS:
        raise ValueError(f"no purpose {purpose!r}: use {' or '.join(KINDS)}")
    wanted = kind or _weighted(rng, KINDS[purpose])
    for _ in range(ATTEMPTS):
        scene = _try_scene(rng, pictures, split, purpose, wanted)
        if scene is not None and belongs(scene, split):
            return scene
    raise ValueError(f"no {purpose} scene with {wanted!r} fits split {split!r}: too few pictures of it")


def _try_scene(rng: random.Random, pictures: Pictures, split: str, purpose: str, kind: str) -> Scene | None:
    """One draw; None where contrast or names do not allow it."""
    concepts = _draw_concepts(rng, pictures, split, kind)
    if concepts is None:
        return None
    # "small" and "big" are only said of things that take "a": a drawing of others stays plain.
    layout, size, corner, squares = _draw_layout(rng, purpose, kind, concepts[0].det == "a")
    draw_looks = _mixed_looks if purpose == "mmu" else _one_hand
    looks = draw_looks(rng, pictures, split, concepts)
    if looks is None:
        return None
    looks = looks if len(looks) == len(squares) else looks * len(squares)
    plain = None if purpose == "mmu" else _plain_ground(pictures, looks)
    ground = plain if plain is not None and rng.random() < PLAIN_SHARE else _draw_ground(rng, pictures, looks)
    if ground is None:
        return None
    mirrored = purpose == "mmu" and concepts[0].category in MIRRORED and rng.random() < 0.3
    things = tuple(
        Thing(
            concept=concept, picture=row, style=style, tint=tint, rgb=rgb, box=box_of(square),
            mirrored=mirrored and concept.category in MIRRORED, hand=hand,
        )
        for (concept, row, style, tint, rgb, hand), square in zip(looks, squares, strict=True)
    )  # fmt: skip
    shade = jitter(rng, COLOURS[ground], GROUND_JITTER[purpose])
    return Scene(
        purpose=purpose,
        kind=kind,
        layout=layout,
        things=things,
        ground=ground,
        ground_rgb=shade,
        plain_ground=ground == plain,
        size=size,
        corner=corner,
    )


def _draw_concepts(rng: random.Random, pictures: Pictures, split: str, kind: str) -> list[Concept] | None:
    """Distinct concepts that cannot be taken for one another; one for "one" and "count"."""
    role = {"one": "any", "count": "counts"}.get(kind, "joins")
    pool = pictures.pool(split, role)
    n = {"two": 2, "three": 3}.get(kind, 1)
    if len(pool) < n:
        return None
    chosen = rng.sample(pool, n)
    if any(clash(a, b) for place, a in enumerate(chosen) for b in chosen[:place]):
        return None
    return chosen


def _mixed_looks(rng: random.Random, pictures: Pictures, split: str, concepts: list[Concept]) -> list[Look] | None:
    """Scenes for looking: any set's pictures, in half of the scenes mixed."""
    usual = TRAINED_STYLE_WEIGHTS if split == TRAIN else STYLE_WEIGHTS
    shared = None if rng.random() < 0.5 else _weighted(rng, usual)
    looks: list[Look] = []
    for concept in concepts:
        found = pictures.styles(concept.id, split)
        # a set without a weight is the one that a split is about
        weights = {style: usual.get(style, 1) for style in found}
        if not concept.tintable:
            weights.pop(GLYPH_STYLE, None)
        if not weights:
            return None
        style = shared if shared in weights else _weighted(rng, weights)
        flat = style in PLAIN_HANDS and concept.tintable
        tinted = style == GLYPH_STYLE or (flat and rng.random() < TINTED_SHARE)
        other = split == TRAIN and concept.tintable and not tinted and rng.random() < OTHER_HAND_SHARE
        row, shade = rng.choice(found[style]), TINT_JITTER["mmu"] if tinted else None
        looks.append(_look(rng, concept, row, style, shade, hand=rng.getrandbits(32) if other else None))
    return looks


def _one_hand(rng: random.Random, pictures: Pictures, split: str, concepts: list[Concept]) -> list[Look] | None:
    """Drawings: one picture of each thing, unless the caption will name a colour or a 3-D rendering."""
    found = [pictures.styles(concept.id, split) for concept in concepts]
    hand = _weighted(rng, HAND_WEIGHTS)
    if hand == SOLID_STYLE and not all(SOLID_STYLE in styles for styles in found):
        hand = "plain"  # a caption speaks of one style or of none
    looks: list[Look] = []
    for concept, styles in zip(concepts, found, strict=True):
        style = next((plain for plain in PLAIN_HANDS if plain in styles), None)
        if hand == SOLID_STYLE:
            style = SOLID_STYLE
        if style is None:
            return None
        # beside tinted things some keep their own colours
        tinted = hand == "tinted" and concept.tintable and (len(concepts) == 1 or rng.random() < 0.7)
        looks.append(_look(rng, concept, styles[style][0], style, TINT_JITTER["t2i"] if tinted else None))
    return looks


def _look(
    rng: random.Random, concept: Concept, row: int, style: str, shade: int | None, hand: int | None = None
) -> Look:
    """A picture, tinted unless `shade` is None: how far the tint may be off its name's colour."""
    if shade is None:
        return concept, row, style, None, None, hand
    tint = rng.choice(COLOUR_NAMES)
    return concept, row, style, tint, jitter(rng, COLOURS[tint], shade), hand


def _seen(pictures: Pictures, look: Look, ground: str) -> bool:
    """Whether a thing stands out from a ground."""
    if look[4] is not None:
        return distance(look[4], COLOURS[ground]) >= MIN_CONTRAST
    return pictures.stands_out(look[1], ground) >= MIN_CONTRAST


def _plain_ground(pictures: Pictures, looks: list[Look]) -> str | None:
    """The ground of these things when nothing is said of it: the same whenever they are drawn."""
    for ground in PLAIN_GROUNDS:
        if all(_seen(pictures, look, ground) and not unseen_ground(look[0].id, ground) for look in looks):
            return ground
    return None


def _draw_ground(rng: random.Random, pictures: Pictures, looks: list[Look]) -> str | None:
    """A ground on which every thing is well seen; None when there is none."""
    clear = [ground for ground in COLOUR_NAMES if all(_seen(pictures, look, ground) for look in looks)]
    return rng.choice(clear) if clear else None


def _draw_layout(
    rng: random.Random, purpose: str, kind: str, sizable: bool
) -> tuple[str, str | None, str | None, tuple[layouts.Square, ...]]:
    """Layout name, size word, corner word, and the squares."""
    if purpose == "t2i":
        return _canonical_layout(rng, kind, sizable)
    if kind == "one":
        squares = layouts.free_one(rng)
        x, y, side = squares[0]
        size = "small" if side < 0.42 else "big" if side > 0.85 else None
        near = [name for name, (cx, cy) in layouts.CORNERS.items() if abs(x - cx) < 0.1 and abs(y - cy) < 0.1]
        return "single", size, near[0] if near and size == "small" else None, squares
    if kind == "two" or (kind == "three" and rng.random() < 0.6):
        along_x = kind == "three" or rng.random() < 0.6
        layout = "row" if kind == "three" else "left_right" if along_x else "above_below"
        return layout, None, None, layouts.free_line(rng, 2 if kind == "two" else 3, along_x)
    return "scatter", None, None, layouts.free_scatter(rng, 3 if kind == "three" else rng.randint(2, 5))


def _canonical_layout(
    rng: random.Random, kind: str, sizable: bool
) -> tuple[str, str | None, str | None, tuple[layouts.Square, ...]]:
    """The layouts of drawings."""
    if kind == "one":
        draw = rng.random() if sizable else 1.0
        size = "small" if draw < 0.10 else "big" if draw < 0.14 else None
        corner = rng.choice(list(layouts.CORNERS)) if draw < 0.05 else None
        return "single", size, corner, layouts.canonical_one(size, corner)
    if kind == "two":
        big = rng.choice((0, 1)) if rng.random() < 0.2 else None
        layout = "left_right" if big is not None or rng.random() < 0.65 else "above_below"
        return layout, None, None, layouts.canonical_two(layout, big)
    if kind == "three":
        return "row", None, None, layouts.canonical_row()
    return "scatter", None, None, layouts.CANONICAL_GROUPS[rng.randint(2, 5)]


def box_of(square: layouts.Square) -> tuple[int, int, int, int]:
    """A square in whole pixels, kept on the canvas."""
    x, y, side = square
    side_px = min(CANVAS_PX, round(side * CANVAS_PX))
    left = min(CANVAS_PX - side_px, max(0, round((x - side / 2) * CANVAS_PX)))
    top = min(CANVAS_PX - side_px, max(0, round((y - side / 2) * CANVAS_PX)))
    return left, top, left + side_px, top + side_px


def _weighted(rng: random.Random, weights: dict[str, float]) -> str:
    """A key by weight."""
    return rng.choices(list(weights), list(weights.values()))[0]


def thing_image(thing: Thing, pictures: Pictures, side_px: int) -> Image.Image:
    """A thing's picture as RGBA, `side_px` square, mirrored and tinted as the scene says."""
    rgba = pictures.rgba[thing.picture]
    if thing.rgb is not None and thing.style != GLYPH_STYLE:
        rgba = recoloured(rgba, thing.rgb)
    if thing.hand is not None:
        rgba = by_another_hand(np.asarray(rgba), random.Random(thing.hand))
    image = Image.fromarray(rgba).resize((side_px, side_px), Image.Resampling.BICUBIC)
    if thing.mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if thing.rgb is None or thing.style != GLYPH_STYLE:
        return image
    solid = Image.new("RGBA", image.size, thing.rgb)
    solid.putalpha(image.getchannel("A"))
    return solid


def compose(scene: Scene, pictures: Pictures, size_px: int = CANVAS_PX) -> np.ndarray:
    """The scene's pixels, (size_px size_px 3) uint8 RGB."""
    canvas = Image.new("RGB", (size_px, size_px), scene.ground_rgb)
    for thing in scene.things:
        left, top, right, _ = (round(edge * size_px / CANVAS_PX) for edge in thing.box)
        image = thing_image(thing, pictures, max(1, right - left))
        canvas.paste(image, (left, top), image)
    return np.asarray(canvas)
