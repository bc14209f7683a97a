"""The twelve colour names of grounds and tints, the distance between colours, and a picture in one colour."""

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
LUMA = (0.299, 0.587, 0.114)  # BT.601, of red, green and blue
SHADES = 0.45  # of the way from black to white that the shades of a recoloured picture span
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


def recoloured(rgba: np.ndarray, rgb: Rgb) -> np.ndarray:
    """A picture in shades of one colour: its lights and darks stay, spread about the colour's own luma.

    rgba (h w 4) uint8, straight alpha. Returns a copy; alpha is untouched.
    """
    colour, weights = np.array(rgb, np.float32) / 255, np.array(LUMA, np.float32)
    luma = rgba[..., :3].astype(np.float32) @ weights / 255
    ink = luma[rgba[..., 3] > 128]
    if not len(ink):
        return rgba.copy()
    low, high = np.percentile(ink, (2, 98))
    contrast = max(float(high - low), 0.15)  # a picture of one shade stays nearly so
    place = np.clip((luma - low) / contrast, 0, 1)
    home = float(colour @ weights)
    middle = float(np.clip((ink - low) / contrast, 0, 1).mean())
    start = min(max(home - middle * SHADES, 0), 1 - SHADES)  # black has no darker shade, white no lighter
    shade = (start + SHADES * place)[..., None]
    darker = colour * shade / max(home, 1e-3)
    lighter = colour + (1 - colour) * (shade - home) / max(1 - home, 1e-3)
    painted = rgba.copy()
    painted[..., :3] = np.clip(np.where(shade <= home, darker, lighter) * 255, 0, 255).astype(np.uint8)
    return painted
