"""Scenes: what stands where, in which style, on which ground; and their pixels.

Purpose "mmu" is for looking (free layouts), "t2i" for drawing (canonical layouts). This file knows no words.
"""

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image

import layouts
from concepts import Concept, clash
from palette import COLOUR_NAMES, COLOURS, MIN_CONTRAST, Rgb, distance, jitter
from pictures import Pictures
from splits import belongs

CANVAS_PX = 128  # boxes are in pixels of a canvas of this side
KINDS: dict[str, dict[str, float]] = {
    "mmu": {"one": 0.55, "two": 0.25, "count": 0.12, "three": 0.08},
    "t2i": {"one": 0.70, "two": 0.15, "count": 0.09, "three": 0.06},
    "plain": {"one": 0.92, "two": 0.04, "count": 0.03, "three": 0.01},
}
# By design, not by picture: Fluent's flat and 3-D pictures are one drawing.
STYLE_WEIGHTS: dict[str, dict[str, float]] = {
    "mmu": {"noto": 25, "twemoji": 25, "noto_v1": 12, "fluent_flat": 14, "fluent_3d": 14, "fluent_hc": 10},
    "t2i": {"noto": 32, "twemoji": 36, "noto_v1": 3, "fluent_flat": 11, "fluent_3d": 18, "fluent_hc": 8},
    # One hand for everything; Fluent's only where Twemoji's drawing is held out.
    "plain": {"twemoji": 90, "fluent_flat": 0.01, "fluent_hc": 10},
}
GLYPH_STYLE = "fluent_hc"  # one colour: always tinted
GROUND_JITTER = {"mmu": 12, "t2i": 3, "plain": 0}
TINT_JITTER = {"mmu": 10, "t2i": 3, "plain": 0}
BIGGER_RATIO = 1.5  # sides that differ by less are not called bigger or smaller
# Text, faces of clocks, hands and flags would be wrong in a mirror.
MIRRORED = frozenset("animal bird reptile insect fruit vegetable flower plant dessert boat".split()) | {"sea animal"}
ATTEMPTS = 3000  # some splits refuse nine scenes of ten


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One picture in a scene."""

    concept: Concept
    picture: int  # row of the picture cache
    style: str  # name of the set
    tint: str | None  # colour name of a glyph
    rgb: Rgb | None  # the tint's own shade
    box: tuple[int, int, int, int]  # left, top, right, bottom in pixels of a 128 px canvas; a square
    mirrored: bool

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

    purpose: str  # "mmu", "t2i" or "plain", drawings without any jitter
    kind: str  # "one", "two", "count" or "three"
    layout: str  # "single", "left_right", "above_below", "row" or "scatter"
    things: tuple[Thing, ...]
    ground: str  # colour name
    ground_rgb: Rgb
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
    looks = _draw_looks(rng, pictures, split, purpose, concepts, len(squares))
    if looks is None:
        return None
    ground = _draw_ground(rng, pictures, purpose, looks)
    if ground is None:
        return None
    mirrored = purpose == "mmu" and concepts[0].category in MIRRORED and rng.random() < 0.3
    things = tuple(
        Thing(
            concept=concept, picture=row, style=style, tint=tint, rgb=rgb, box=_box(square),
            mirrored=mirrored and concept.category in MIRRORED,
        )
        for (concept, row, style, tint, rgb), square in zip(looks, squares, strict=True)
    )  # fmt: skip
    shade = jitter(rng, COLOURS[ground], GROUND_JITTER[purpose])
    return Scene(
        purpose=purpose,
        kind=kind,
        layout=layout,
        things=things,
        ground=ground,
        ground_rgb=shade,
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


Look = tuple[Concept, int, str, str | None, Rgb | None]


def _draw_looks(
    rng: random.Random, pictures: Pictures, split: str, purpose: str, concepts: list[Concept], n: int
) -> list[Look] | None:
    """For each of n things its concept, picture row, set, and tint."""
    # Drawings look made by one hand; scenes for looking may mix hands.
    shared = None if purpose == "mmu" and rng.random() < 0.5 else _weighted(rng, STYLE_WEIGHTS[purpose])
    looks: list[Look] = []
    for concept in concepts:
        found = pictures.styles(concept.id, split)
        weights = {style: STYLE_WEIGHTS[purpose][style] for style in found if style in STYLE_WEIGHTS[purpose]}
        if purpose != "plain":
            weights |= {style: 1 for style in found if style not in weights}
        if not concept.tintable:
            weights.pop(GLYPH_STYLE, None)
        if not weights:
            return None
        style = shared if shared in weights else _weighted(rng, weights)
        tint = rng.choice(COLOUR_NAMES) if style == GLYPH_STYLE else None
        rgb = None if tint is None else jitter(rng, COLOURS[tint], TINT_JITTER[purpose])
        looks.append((concept, rng.choice(found[style]), style, tint, rgb))
    if len(looks) == n:
        return looks
    return [looks[0]] * n


def _draw_ground(rng: random.Random, pictures: Pictures, purpose: str, looks: list[Look]) -> str | None:
    """A ground on which every thing is well seen; None when there is none."""

    def seen(look: Look, ground: str) -> bool:
        if look[4] is not None:
            return distance(look[4], COLOURS[ground]) >= MIN_CONTRAST
        return pictures.stands_out(look[1], ground) >= MIN_CONTRAST

    # White stays plain half the time: a drawing whose caption names no ground is on white.
    if purpose != "mmu" and rng.random() < 0.5 and all(seen(look, "white") for look in looks):
        return "white"
    clear = [ground for ground in COLOUR_NAMES if all(seen(look, ground) for look in looks)]
    return rng.choice(clear) if clear else None


def _draw_layout(
    rng: random.Random, purpose: str, kind: str, sizable: bool
) -> tuple[str, str | None, str | None, tuple[layouts.Square, ...]]:
    """Layout name, size word, corner word, and the squares."""
    if purpose == "t2i":
        layout, size, corner, squares = _canonical_layout(rng, kind, sizable)
        return layout, size, corner, layouts.shake(rng, squares)
    if purpose == "plain":
        return _canonical_layout(rng, kind, False)
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


def _box(square: layouts.Square) -> tuple[int, int, int, int]:
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
    image = Image.fromarray(pictures.rgba[thing.picture]).resize((side_px, side_px), Image.Resampling.BICUBIC)
    if thing.mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if thing.rgb is None:
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
