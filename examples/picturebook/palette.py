"""The twelve colour names of grounds and tints, and the distance between colours."""

import math
import random

import numpy as np

Rgb = tuple[int, int, int]  # 0-255 each

# The order is the order of the colour numbers: append, never reorder.
COLOURS: dict[str, Rgb] = {
    "white": (255, 255, 255),
    "black": (20, 20, 20),
    "gray": (128, 128, 128),
    "red": (214, 40, 40),
    "orange": (245, 130, 32),
    "yellow": (250, 215, 50),
    "green": (50, 160, 70),
    "blue": (40, 80, 200),
    "light blue": (150, 205, 245),
    "purple": (130, 60, 170),
    "pink": (250, 150, 190),
    "brown": (125, 75, 40),
}
COLOUR_NAMES: tuple[str, ...] = tuple(COLOURS)
COLOUR_NUMBER: dict[str, int] = {name: number for number, name in enumerate(COLOUR_NAMES)}
# Words that say a colour inside a name: such a thing is never tinted.
COLOUR_WORDS = frozenset(
    {word for name in COLOURS for word in name.split()} | {"gold", "silver", "bronze", "golden", "blond", "rainbow"}
)
MIN_CONTRAST = 70.0  # RGB distance of thing and ground below which a drawing is hard to see


def jitter(rng: random.Random, rgb: Rgb, amount: int) -> Rgb:
    """The colour moved by at most `amount` in each channel."""
    red, green, blue = (min(255, max(0, value + rng.randint(-amount, amount))) for value in rgb)
    return red, green, blue


def distance(a: Rgb, b: Rgb) -> float:
    """Euclidean distance in RGB, 0 to 442."""
    return math.dist(a, b)


def contrasts(rgba: np.ndarray) -> list[int]:
    """Median RGB distance of a picture's ink to each ground colour.

    rgba (h w 4) uint8. Returns one int, 0 to 442, for each entry of COLOUR_NAMES.
    """
    # Every fourth pixel both ways: the median does not need more.
    sparse = rgba[::4, ::4].reshape(-1, 4)
    ink = sparse[sparse[:, 3] > 128][:, :3].astype(np.float32)
    if not len(ink):
        return [0] * len(COLOURS)
    grounds = np.array(list(COLOURS.values()), np.float32)
    far = np.sqrt(((ink[:, None] - grounds[None]) ** 2).sum(-1))  # (ink, colours)
    return [int(value) for value in np.median(far, axis=0)]
