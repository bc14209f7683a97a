"""Scenes with a label for each cell of a grid, to train a vision tower on the fly."""

import random

import numpy as np
from PIL import Image

from palette import COLOUR_NUMBER
from pictures import STYLE_NUMBER, Pictures
from scenes import CANVAS_PX, sample_scene, thing_image
from splits import TRAIN

MIN_INK = 0.15  # part of a cell that must be ink for it to belong to a thing


def tower_sample(
    rng: random.Random, pictures: Pictures, grid: int = 8, size_px: int = 128
) -> tuple[np.ndarray, dict[str, np.ndarray | int]]:
    """One training scene and what is in each of its grid x grid cells.

    `size_px` must be a multiple of `grid`. Returns the image (size_px size_px 3) uint8 and:
    concept (grid grid) int16, place in the sorted concept list, -1 on bare ground; style (grid grid) int8,
    place in `fetch.SETS`, -1 on bare ground; tint (grid grid) int8, place in `palette.COLOUR_NAMES`, -1 where
    none; background, an int, place in `palette.COLOUR_NAMES`.
    """
    if size_px % grid:
        raise ValueError(f"size_px={size_px} is not a multiple of grid={grid}: give a size that is")
    scene = sample_scene(rng, pictures, TRAIN, purpose="mmu")
    canvas = Image.new("RGB", (size_px, size_px), scene.ground_rgb)
    covers = np.empty((len(scene.things), grid, grid), np.float32)
    for number, thing in enumerate(scene.things):
        left, top, right, _ = (round(edge * size_px / CANVAS_PX) for edge in thing.box)
        image = thing_image(thing, pictures, max(1, right - left))
        canvas.paste(image, (left, top), image)
        mask = Image.new("L", (size_px, size_px))
        mask.paste(image.getchannel("A"), (left, top))
        covers[number] = np.asarray(mask.reduce(size_px // grid), np.float32) / 255
    winner = covers.argmax(0)  # (grid grid)
    bare = covers.max(0) < MIN_INK

    def label(values: list[int], dtype: type) -> np.ndarray:
        return np.where(bare, -1, np.array(values, dtype)[winner]).astype(dtype)

    return np.asarray(canvas), {
        "concept": label([thing.concept.index for thing in scene.things], np.int16),
        "style": label([STYLE_NUMBER[thing.style] for thing in scene.things], np.int8),
        "tint": label([-1 if t.tint is None else COLOUR_NUMBER[t.tint] for t in scene.things], np.int8),
        "background": COLOUR_NUMBER[scene.ground],
    }
