"""A picture as another hand might have drawn it: for looking, so that a thing is known by more than six styles."""

import random

import numpy as np
from PIL import Image, ImageDraw

INKS = ((20, 20, 20), (45, 35, 60), (70, 50, 40), (30, 50, 90))  # of outlines
PALETTE_PX = 48  # flat colours are chosen from a picture of this size: finding them is what takes time
LINE_STEP = 24  # of luma, 0 to 255: from here on one flat colour meets another


def by_another_hand(rgba: np.ndarray, rng: random.Random) -> np.ndarray:
    """Leaned, recoloured, flattened, outlined, set on its shadow, each at random; what it shows stays the same.

    rgba (h w 4) uint8, straight alpha. Returns a copy of the same shape.
    """
    image = _leaned(Image.fromarray(rgba), rng)
    alpha = np.asarray(image.getchannel("A"))
    paint = image.convert("RGB")
    if rng.random() < 0.7:
        paint = _recoloured(paint, rng)
    flattened, outlined = rng.random() < 0.6, rng.random() < 0.6
    flat = _flat(paint, rng.randint(3, 7)) if flattened or outlined else paint
    if flattened:
        paint = flat
    if rng.random() < 0.4:
        paint = Image.blend(paint, Image.new("RGB", paint.size, "white"), rng.uniform(0.2, 0.6))
    pixels = np.asarray(paint)
    if outlined:
        pixels, alpha = _outlined(pixels, np.asarray(flat.convert("L")), alpha, rng)
    if rng.random() < 0.4:
        pixels, alpha = _on_its_shadow(pixels, alpha, rng)
    return np.concatenate([pixels, alpha[..., None]], 2)


def _flat(paint: Image.Image, colours: int) -> Image.Image:
    """In a few colours of its own."""
    palette = paint.resize((PALETTE_PX, PALETTE_PX), Image.Resampling.BOX).quantize(colours)
    return paint.quantize(palette=palette, dither=Image.Dither.NONE).convert("RGB")


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
    pixels: np.ndarray, shades: np.ndarray, alpha: np.ndarray, rng: random.Random
) -> tuple[np.ndarray, np.ndarray]:
    """Ink around the whole and where one flat colour meets another; pixels (h w 3), shades and alpha (h w)."""
    wider = _grown(alpha, rng.choice((1, 2)))
    # nothing is beyond the edge of a picture: a thing that fills it has its rim inside
    lines = wider - _shrunk(alpha)
    if rng.random() < 0.7:
        meets = _grown(shades, 1).astype(np.int16) - _shrunk(shades) > LINE_STEP
        lines = np.maximum(lines, np.where(meets, alpha, 0))
    share = lines[..., None].astype(np.float32) / 255
    inked = pixels + (np.array(rng.choice(INKS), np.float32) - pixels) * share
    return inked.round().astype(np.uint8), wider


def _on_its_shadow(pixels: np.ndarray, alpha: np.ndarray, rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
    """With a flat dark ellipse behind its lower edge, as cartoons have it; pixels (h w 3), alpha (h w)."""
    rows, columns = np.flatnonzero((alpha > 127).any(1)), np.flatnonzero((alpha > 127).any(0))
    wide, high, low = rng.uniform(0.3, 0.6), rng.uniform(0.02, 0.06), rng.uniform(-1.0, 0.5)
    strength = rng.randint(20, 80)  # of 255
    if len(rows) == 0:
        return pixels, alpha
    x, half = (columns[0] + columns[-1]) / 2, wide * (columns[-1] - columns[0])
    tall = high * len(alpha)
    y = rows[-1] + low * tall
    shadow = Image.new("L", alpha.shape[::-1])
    ImageDraw.Draw(shadow).ellipse((x - half, y - tall, x + half, y + tall), fill=strength)
    cover = alpha.astype(np.float32)
    both = cover + np.asarray(shadow, np.float32) * (1 - cover / 255)
    darker = pixels * (cover / np.maximum(both, 1))[..., None]
    return darker.round().astype(np.uint8), both.round().astype(np.uint8)


def _grown(values: np.ndarray, by: int) -> np.ndarray:
    """The largest of the neighbours up to `by` pixels away, both ways; zero beyond the edge. (h w) uint8."""
    h, w = values.shape
    padded = np.pad(values, by)
    tall = np.maximum.reduce([padded[shift : shift + h] for shift in range(2 * by + 1)])
    return np.maximum.reduce([tall[:, shift : shift + w] for shift in range(2 * by + 1)])


def _shrunk(values: np.ndarray) -> np.ndarray:
    """The least of the neighbours a pixel away, zero beyond the edge. (h w) uint8."""
    return 255 - _grown(255 - np.pad(values, 1), 1)[1:-1, 1:-1]
