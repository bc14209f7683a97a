"""A picture as another hand might have drawn it: for looking, so that a thing is known by more than six styles."""

import random

import numpy as np
from PIL import Image, ImageChops, ImageFilter

INKS = ((20, 20, 20), (45, 35, 60), (70, 50, 40), (30, 50, 90))  # of outlines


def by_another_hand(rgba: np.ndarray, rng: random.Random) -> np.ndarray:
    """Leaned, recoloured, flattened and outlined at random; what it shows stays the same.

    rgba (h w 4) uint8, straight alpha. Returns a copy of the same shape.
    """
    image = _leaned(Image.fromarray(rgba), rng)
    alpha = image.getchannel("A")
    paint = image.convert("RGB")
    if rng.random() < 0.7:
        paint = _recoloured(paint, rng)
    flat = paint.quantize(rng.randint(3, 7)).convert("RGB")
    if rng.random() < 0.6:
        paint = flat
    if rng.random() < 0.4:
        paint = Image.blend(paint, Image.new("RGB", paint.size, "white"), rng.uniform(0.2, 0.6))
    if rng.random() < 0.6:
        paint, alpha = _outlined(paint, flat, alpha, rng)
    drawn = paint.convert("RGBA")
    drawn.putalpha(alpha)
    return np.array(drawn)


def _leaned(image: Image.Image, rng: random.Random) -> Image.Image:
    """Turned, sheared and stretched a little, about the middle."""
    a, d = (rng.uniform(1.0, 1.15) for _ in range(2))
    b, c = (rng.uniform(-0.12, 0.12) for _ in range(2))
    x, y = image.width / 2, image.height / 2
    lean = (a, b, x - a * x - b * y, c, d, y - c * x - d * y)
    return image.transform(image.size, Image.Transform.AFFINE, lean, Image.Resampling.BILINEAR)


def _recoloured(paint: Image.Image, rng: random.Random) -> Image.Image:
    """Other hues, mostly near ones, another saturation and brightness."""
    hue, saturation, value = (np.asarray(band).astype(np.float32) for band in paint.convert("HSV").split())
    turn = rng.uniform(-24, 24) if rng.random() < 0.75 else rng.uniform(0, 255)
    hue = (hue + turn) % 256
    saturation = np.clip(saturation * rng.uniform(0.4, 1.4), 0, 255)
    value = 255 * (value / 255) ** rng.uniform(0.6, 1.4)
    bands = [Image.fromarray(band.astype(np.uint8)) for band in (hue, saturation, value)]
    return Image.merge("HSV", bands).convert("RGB")


def _outlined(
    paint: Image.Image, flat: Image.Image, alpha: Image.Image, rng: random.Random
) -> tuple[Image.Image, Image.Image]:
    """Ink around the whole and where one flat colour meets another."""
    width = rng.choice((3, 5))
    wider = alpha.filter(ImageFilter.MaxFilter(width))
    rim = ImageChops.subtract(wider, alpha.filter(ImageFilter.MinFilter(3)))
    shades = flat.convert("L")
    inside = ImageChops.subtract(shades.filter(ImageFilter.MaxFilter(3)), shades.filter(ImageFilter.MinFilter(3)))
    meets = ImageChops.multiply(inside.point(lambda step: 255 if step > 24 else 0), alpha)
    lines = ImageChops.lighter(rim, meets) if rng.random() < 0.7 else rim
    inked = Image.composite(Image.new("RGB", paint.size, rng.choice(INKS)), paint, lines)
    return inked, wider
