"""Any file people have becomes upright 8-bit RGB, or one clear error."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from omnimamba_cli.data.images import pixels_to_image, tower_pixels, vq_pixels
from omnimamba_cli.data.reading import MAX_PIXELS, load_image
from omnimamba_cli.errors import InputError

RED, WHITE, GREEN = (255, 0, 0), (255, 255, 255), (0, 255, 0)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def halves(size: tuple[int, int] = (8, 4)) -> Image.Image:
    """Red on the left, green on the right."""
    image = Image.new("RGB", size, RED)
    image.paste(GREEN, (size[0] // 2, 0, *size))
    return image


@pytest.mark.parametrize("how", ["path", "string", "bytes", "picture"])
def test_every_kind_of_source_gives_the_same_picture(how: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    halves().save(path)
    sources = {"path": path, "string": str(path), "bytes": path.read_bytes(), "picture": halves()}
    got = load_image(sources[how])
    assert got.mode == "RGB"
    assert got.tobytes() == halves().tobytes()


@pytest.mark.parametrize(
    ("orientation", "size", "red"),
    [(1, (8, 4), (0, 0)), (3, (8, 4), (7, 3)), (6, (4, 8), (0, 0)), (8, (4, 8), (0, 7))],
)
def test_exif_rotation_is_applied(orientation: int, size: tuple[int, int], red: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = load_image(encoded(halves(), exif=exif))
    assert got.size == size
    assert got.getpixel(red) == RED
    assert got.getpixel((size[0] - 1 - red[0], size[1] - 1 - red[1])) == GREEN


def transparent(mode: str) -> bytes:
    """A clear pixel beside an opaque dark one."""
    if mode == "RGBA":
        image = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
        image.putpixel((1, 0), (0, 0, 0, 255))
        return encoded(image)
    if mode == "LA":
        image = Image.new("LA", (2, 1), (90, 0))
        image.putpixel((1, 0), (0, 255))
        return encoded(image)
    if mode == "P":
        image = Image.new("P", (2, 1), 1)
        image.putpalette([0, 0, 0, 255, 0, 0])
        image.putpixel((1, 0), 0)
        return encoded(image, transparency=1)
    if mode == "RGB with a key":
        image = Image.new("RGB", (2, 1), RED)
        image.putpixel((1, 0), (0, 0, 0))
        return encoded(image, transparency=RED)
    image = Image.new("L", (2, 1), 90)
    image.putpixel((1, 0), 0)
    return encoded(image, transparency=90)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB with a key", "L with a key"])
def test_transparency_is_laid_over_white(mode: str) -> None:
    got = load_image(transparent(mode))
    assert [got.getpixel((x, 0)) for x in (0, 1)] == [WHITE, (0, 0, 0)]


def test_half_transparency_is_half_white() -> None:
    got = load_image(encoded(Image.new("RGBA", (1, 1), (255, 0, 0, 128))))
    assert got.getpixel((0, 0)) == (255, 127, 127)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    values = np.array([[0, 300, 32768, 65535]], dtype=np.uint16)
    got = load_image(encoded(Image.fromarray(values)))
    assert [got.getpixel((x, 0))[0] for x in range(4)] == [0, 1, 127, 255]


@pytest.mark.parametrize("top", [1.0, 255.0])
def test_float_pictures_are_scaled_by_their_own_range(top: float) -> None:
    image = Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32) * top)
    assert [load_image(image).getpixel((x, 0)) for x in range(3)] == [(0,) * 3, (127,) * 3, (255,) * 3]


def test_cmyk_becomes_rgb() -> None:
    got = load_image(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100))
    assert np.abs(np.array(got.getpixel((4, 4))) - RED).max() < 12


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in (RED, GREEN, WHITE)]
    got = load_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert got.getpixel((2, 2)) == RED


@pytest.mark.parametrize("mode", ["1", "L", "YCbCr", "HSV"])
def test_other_modes_become_rgb(mode: str) -> None:
    assert load_image(Image.new("RGB", (2, 2), WHITE).convert(mode)).getpixel((1, 1)) == WHITE


def test_one_pixel_is_a_picture() -> None:
    image = load_image(encoded(Image.new("RGB", (1, 1), RED)))
    for pixels in (tower_pixels(image, 8), vq_pixels(image, 8)):
        assert pixels.shape == (3, 8, 8)
        assert pixels[0].eq(255).all()
        assert pixels[1:].eq(0).all()


# refusals


def test_more_pixels_than_allowed_are_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("RGB", (10, 11)))
    assert load_image(data, max_pixels=110).size == (10, 11)
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("the pixels were read"))
    with pytest.raises(InputError, match="10x11 pixels are more than the 109 allowed"):
        load_image(data, max_pixels=109)


def test_the_limit_is_the_one_the_error_names() -> None:
    # beyond twice its warning Pillow refuses first, whatever we allow
    assert 2 * (Image.MAX_IMAGE_PIXELS or 0) >= MAX_PIXELS
    data = encoded(Image.new("1", (15_000, 12_000)))
    with pytest.raises(InputError, match=f"{MAX_PIXELS:,} allowed"):
        load_image(data)


def test_pillows_own_limit_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(InputError, match="pixels"):
        load_image(encoded(Image.new("RGB", (10, 11))))


def test_a_large_photograph_is_read_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    # more than where Pillow warns, one bit a pixel
    data = encoded(Image.new("1", (12_000, 9_000)))
    with Image.open(io.BytesIO(data)) as image:
        assert image.width * image.height > Image.MAX_IMAGE_PIXELS
    recwarn.clear()
    assert load_image(data).size == (12_000, 9_000)
    assert not recwarn.list


def test_a_truncated_jpeg_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / "cut.jpg"
    path.write_bytes(encoded(Image.fromarray(noise), "JPEG")[:2000])
    with pytest.raises(InputError, match=r"cut\.jpg: cannot be read \(.*truncated"):
        load_image(path)


@pytest.mark.parametrize("content", [b"", b"hello, this is text\n" * 50, b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_what_is_no_picture_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.png: (not a picture|cannot be read)"):
        load_image(path)


def test_a_missing_file_and_a_directory_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.png: no such file"):
        load_image(tmp_path / "gone.png")
    with pytest.raises(InputError, match="is a directory, not a picture"):
        load_image(tmp_path)


def test_bytes_are_called_what_the_caller_says() -> None:
    with pytest.raises(InputError, match="standard input: not a picture"):
        load_image(b"no", name="standard input")


# tensors


def test_towers_see_the_whole_picture_squashed() -> None:
    pixels = tower_pixels(halves((80, 20)), 20)
    assert (pixels.shape, pixels.dtype) == ((3, 20, 20), torch.uint8)
    assert pixels[:, :, :9].eq(torch.tensor(RED)[:, None, None]).all()
    assert pixels[:, :, 11:].eq(torch.tensor(GREEN)[:, None, None]).all()


@pytest.mark.parametrize("size", [(60, 20), (20, 60)])
def test_the_image_tokenizer_sees_the_centre_square(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, GREEN)
    left, top = (size[0] - 20) // 2, (size[1] - 20) // 2
    image.paste(RED, (left, top, left + 20, top + 20))
    pixels = vq_pixels(image, 10)
    assert (pixels.shape, pixels.dtype) == ((3, 10, 10), torch.uint8)
    # the filter reads a little beyond the edge
    assert pixels[0].ge(230).all()
    assert pixels[1:].le(25).all()


def test_a_picture_of_the_right_size_is_taken_as_it_is() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    want = torch.from_numpy(noise).permute(2, 0, 1)
    for take in (tower_pixels, vq_pixels):
        assert torch.equal(take(Image.fromarray(noise), 16), want)


def test_pixels_become_the_picture_they_came_from() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    back = pixels_to_image(torch.from_numpy(noise).permute(2, 0, 1) / 127.5 - 1)
    assert back.tobytes() == image.tobytes()


def test_pixels_beyond_the_range_are_clamped() -> None:
    image = pixels_to_image(torch.tensor([-3.0, 0.0, 3.0]).expand(3, 1, 3))
    assert [image.getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]
