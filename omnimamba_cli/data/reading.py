"""Picture files of any kind that people have, read as RGB. Needs no torch, so that a bad file is reported at once."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from omnimamba_cli.errors import InputError

Source = str | Path | bytes | Image.Image

MAX_PIXELS = 178_000_000  # larger files are refused unread; Pillow itself refuses from 178,956,970 on


def load_image(source: Source, *, name: str | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture as RGB, upright, transparency laid over white, first frame of an animation.

    `source` is a path, the bytes of a file, or a picture; `name` stands for bytes in errors.
    Raises InputError for a file that is missing, no picture, truncated or larger than max_pixels.
    """
    with _opened(source, name, max_pixels) as image:
        return _to_rgb(image)


def image_size(source: Source, *, name: str | None = None, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height in pixels, read from the head of a file. Raises InputError as load_image does."""
    with _opened(source, name, max_pixels) as image:
        return image.size


@contextmanager
def _opened(source: Source, name: str | None, max_pixels: int) -> Iterator[Image.Image]:
    """The picture, its pixels not yet read. Whatever goes wrong, here or within the block, becomes an InputError."""
    label = name or (str(source) if isinstance(source, str | Path) else "the picture")
    try:
        with warnings.catch_warnings():
            # Pillow warns long before our own limit, which is checked below
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if isinstance(source, Image.Image):
                yield source
                return
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                if image.width * image.height > max_pixels:
                    raise InputError(
                        f"{label}: {image.width}x{image.height} pixels are more than the {max_pixels:,} allowed",
                        hint="make it smaller first",
                    )
                yield image
    except FileNotFoundError:
        raise InputError(f"{label}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{label}: is a directory, not a picture") from None
    except UnidentifiedImageError:
        raise InputError(f"{label}: not a picture this program can read", hint="PNG, JPEG, WebP, GIF, ...") from None
    except Image.DecompressionBombError:
        raise InputError(
            f"{label}: more pixels than the {max_pixels:,} allowed", hint="make it smaller first"
        ) from None
    except (InputError, MemoryError):
        raise
    except Exception as error:  # decoders of broken files raise whatever they stumble over
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{label}: cannot be read ({reason})") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """Upright, 8 bits, no transparency."""
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and float gray scaled to 0..255 (Pillow's own convert clips instead)."""
    import numpy as np  # here: few pictures need it

    values = np.asarray(image).astype(np.float64)
    top = 65535.0 if image.mode.startswith("I") else 1.0 if values.max(initial=0) <= 1 else 255.0
    return Image.fromarray(np.clip(values * (255.0 / top), 0, 255).astype(np.uint8), "L")


def squashed(image: Image.Image, size: int) -> Image.Image:
    """RGB at size x size by bicubic resampling, whatever its shape was; itself where it has that size."""
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BICUBIC)
