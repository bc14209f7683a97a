"""Everything people feed to a program like this, through a real (tiny, random) model: one clear line, or the result."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from omnimamba_cli.cli import models
from tests.cli.conftest import Process, Run, environment

Save = Callable[[Path], None]


@pytest.fixture
def tiny(run: Run, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run`, with the tiny model as the default one."""
    monkeypatch.setenv("OMNIMAMBA_MODEL", str(tiny_model))
    return run


def photo(size: tuple[int, int] = (40, 20)) -> Image.Image:
    y, x = np.mgrid[: size[1], : size[0]]
    return Image.fromarray(np.stack([x * 5 % 256, y * 7 % 256, (x + y) % 256], -1).astype(np.uint8))


def truncated_jpeg(path: Path) -> None:
    buffer = io.BytesIO()
    photo((200, 200)).save(buffer, "JPEG")
    path.write_bytes(buffer.getvalue()[:1500])


def exif_rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo().save(path, "JPEG", exif=exif)


def animated(path: Path) -> None:
    frames = [photo(), photo().rotate(90)]
    frames[0].save(path, "GIF", save_all=True, append_images=frames[1:])


def sixteen_bit(path: Path) -> None:
    Image.fromarray(np.linspace(0, 65535, 400).astype(np.uint16).reshape(20, 20)).save(path, "PNG")


@pytest.mark.parametrize(
    "save",
    [
        pytest.param(lambda path: photo((1, 1)).save(path, "PNG"), id="1x1"),
        pytest.param(lambda path: photo((4000, 1)).save(path, "PNG"), id="4000x1"),
        pytest.param(lambda path: photo().convert("RGBA").save(path, "PNG"), id="RGBA"),
        pytest.param(lambda path: photo().convert("LA").save(path, "PNG"), id="LA"),
        pytest.param(lambda path: photo().quantize(8).save(path, "PNG", transparency=0), id="palette"),
        pytest.param(lambda path: photo().convert("1").save(path, "PNG"), id="1 bit"),
        pytest.param(lambda path: photo().convert("CMYK").save(path, "JPEG"), id="CMYK"),
        pytest.param(sixteen_bit, id="16 bit"),
        pytest.param(exif_rotated, id="EXIF"),
        pytest.param(animated, id="animated"),
    ],
)
def test_unusual_pictures_are_looked_at(tiny: Run, tmp_path: Path, save: Save) -> None:
    save(tmp_path / "picture")
    result = tiny("caption", "picture", "--json")
    assert (result.code, result.err) == (0, "")
    assert '"caption":' in result.out


@pytest.mark.slow
def test_a_huge_picture_is_looked_at(tiny: Run, tmp_path: Path) -> None:
    Image.new("RGB", (12_000, 9_000), "red").save(tmp_path / "huge.png")
    assert tiny("caption", "huge.png").code == 0


@pytest.mark.parametrize(
    ("save", "words"),
    [
        pytest.param(lambda path: None, "no such file", id="missing"),
        pytest.param(lambda path: path.write_text("a red fox"), "not a picture", id="text"),
        pytest.param(lambda path: path.write_bytes(b""), "is empty", id="empty"),
        pytest.param(lambda path: path.mkdir(), "is a folder", id="folder"),
        pytest.param(truncated_jpeg, "cannot be read", id="truncated"),
        pytest.param(lambda path: Image.new("1", (20_000, 20_000)).save(path, "PNG"), "pixels", id="400 megapixels"),
    ],
)
def test_what_is_no_picture_is_one_error_line(tiny: Run, tmp_path: Path, save: Save, words: str) -> None:
    save(tmp_path / "picture")
    result = tiny("caption", "picture")
    lines = result.err.splitlines()
    assert (result.code, result.out) == (3, "")
    assert lines[0].startswith("error: picture: ")
    assert words in lines[0]
    assert all(line.startswith("hint: ") for line in lines[1:])


def test_bad_bytes_on_stdin_are_named_by_the_dash(process: Process, tiny_model: Path) -> None:
    done = process("caption", "-", input=b"no picture", env=environment(OMNIMAMBA_MODEL=str(tiny_model)))
    assert (done.returncode, done.stdout) == (3, b"")
    assert done.stderr.startswith(b"error: -: not a picture")


@pytest.mark.parametrize("question", ["", "  ", "\U0001f98a?", "狐は何ですか", "\udcff", "nul\0byte", "{question}"])
def test_any_short_question_is_answered(tiny: Run, picture: str, question: str) -> None:
    result = tiny("caption", picture, "-p", question)
    assert (result.code, result.err) == (0, "")


def test_a_question_that_does_not_fit_is_refused(tiny: Run, picture: str) -> None:
    result = tiny("caption", picture, "why? " * 2000)
    assert (result.code, result.out) == (3, "")
    assert result.err.startswith("error: the question has")


@pytest.mark.parametrize("prompt", ["", "\U0001f98a", "狐と猫", "\udcff", "nul\0byte", "fox " * 2500])
def test_any_prompt_is_drawn(tiny: Run, tmp_path: Path, prompt: str) -> None:
    result = tiny("generate", prompt, "-o", "fox.png", "--seed", "1")
    assert (result.code, result.out) == (0, "fox.png\n")
    assert ("cut" in result.err) is (len(prompt) > 100)
    with Image.open(tmp_path / "fox.png") as image:
        assert image.size == (32, 32)


def test_the_same_seed_draws_the_same_picture_whatever_the_batch(tiny: Run, tmp_path: Path) -> None:
    tiny("generate", "fox", "-n", "3", "-o", "a.png", "--seed", "5")
    tiny("generate", "fox", "-n", "3", "-o", "b.png", "--seed", "5")
    tiny("generate", "fox", "-n", "3", "-o", "c.png", "--seed", "5", "--batch-size", "1")
    tiny("generate", "fox", "-o", "d.png", "--seed", "6")
    assert (tmp_path / "a-2.png").read_bytes() == (tmp_path / "b-2.png").read_bytes()
    pixels = {p.stem: np.asarray(Image.open(p)).astype(int) for p in tmp_path.glob("*.png")}
    # a batch may add in another order, which shows as one step of 255 where a value lies between two
    for other in ("c-2", "d"):
        assert abs(pixels["a-2"] - pixels[other]).max() <= 1
    assert abs(pixels["a-1"] - pixels["a-2"]).max() > 20


@pytest.mark.parametrize("output", ["/proc/fox.png", "nowhere/fox.png", "file/fox.png", "x" * 300])
def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_loaded(
    tiny: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    monkeypatch.setattr(models, "open_session", None)
    (tmp_path / "file").write_text("")
    result = tiny("generate", "fox", "-o", output)
    assert (result.code, result.out) == (3, "")
    assert result.err.startswith("error: ")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("model", "code"), [("nanoo", 4), ("folder", 4), ("./folder", 4), ("fox.png", 4), ("./missing", 4), (".", 4)]
)
def test_what_is_no_model_is_a_model_error(run: Run, tmp_path: Path, picture: str, model: str, code: int) -> None:
    (tmp_path / "folder").mkdir()
    for arguments in (["caption", picture], ["generate", "fox", "-o", "new.png"]):
        result = run(*arguments, "-m", model)
        assert (result.code, result.out) == (code, "")
        assert result.err.startswith("error: ")
        assert "\nhint: " in result.err
    assert not (tmp_path / "new.png").exists()


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_a_device_error(tiny: Run, picture: str, device: str) -> None:
    result = tiny("caption", picture, "--device", device)
    assert (result.code, result.out) == (5, "")
    assert result.err.startswith("error: ")
    assert "\nhint: --device" in result.err


def test_verbose_tells_device_dtype_and_kernels(tiny: Run, picture: str) -> None:
    text = tiny("caption", picture, "-v").err
    for words in ("model   tiny", "device  cpu", "dtype   float32", "kernel  ssd_scan: torch"):
        assert words in text


def test_a_drawing_pipes_into_a_caption(tiny_model: Path, process: Process) -> None:
    env = environment(OMNIMAMBA_MODEL=str(tiny_model))
    drawn = process("generate", "a red fox", "-o", "-", "-q", "--seed", "1", env=env)
    assert (drawn.returncode, drawn.stderr) == (0, b"")
    said = process("caption", "-", "what is here?", input=drawn.stdout, env=env)
    assert (said.returncode, said.stderr) == (0, b"")
    assert said.stdout.endswith(b"\n")
