"""Pictures as text: each way read back into pixels, and what a terminal says of itself."""

import base64
import io
import os
import re
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from omnimamba_cli.cli import preview, terminal
from omnimamba_cli.cli.output import Output
from omnimamba_cli.cli.showing import Screen, follow


def gradient(width: int = 12, height: int = 8) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, 255 - x * 9], -1).astype(np.uint8))


def xterm_colour(n: int) -> tuple[int, int, int]:
    """The colours 16 to 255 as xterm's table has them."""
    if n >= 232:
        return (8 + 10 * (n - 232),) * 3
    steps = (0, 95, 135, 175, 215, 255)
    return steps[(n - 16) // 36], steps[(n - 16) // 6 % 6], steps[(n - 16) % 6]


def cells(text: str) -> np.ndarray:
    """Half blocks back into pixels."""
    rows: list[list[tuple[int, ...]]] = []
    for line in text.splitlines():
        assert line.endswith("\x1b[0m"), "colours end with the line"
        upper, lower = [], []
        for codes in re.findall(r"\x1b\[38;([\d;]+)m\u2580", line):
            ink, _, ground = codes.partition(";48;")
            for colour, row in ((ink, upper), (ground, lower)):
                kind, *numbers = map(int, colour.split(";"))
                row.append(tuple(numbers) if kind == 2 else xterm_colour(numbers[0]))
        rows += [upper, lower]
    return np.array(rows)


def test_half_blocks_hold_two_pixels_a_character() -> None:
    picture = gradient()
    assert (cells(preview.half_blocks(picture, true_colour=True)) == np.asarray(picture)).all()


def test_256_colours_are_the_nearest_ones() -> None:
    picture = gradient()
    got = cells(preview.half_blocks(picture, true_colour=False)).astype(int)
    table = np.array([xterm_colour(n) for n in range(16, 256)])
    pixels = np.asarray(picture).astype(int)
    nearest = ((pixels[:, :, None] - table) ** 2).sum(-1).min(-1)
    assert (((got - pixels) ** 2).sum(-1) <= 1.3 * nearest + 60).all()
    grays = Image.fromarray(np.full((2, 1, 3), 118, np.uint8))
    assert (cells(preview.half_blocks(grays, true_colour=False)) == 118).all()


def test_letters_are_lighter_for_lighter_pixels() -> None:
    ramp = Image.fromarray(np.arange(0, 256, 26, dtype=np.uint8)[None], "L")
    assert preview.letters(ramp) == preview.SHADES + "\n"


def test_kittys_pieces_are_the_picture_as_png() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    text = preview.kitty(picture, 20, 10)
    pieces = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", text)
    assert len(pieces) > 1
    assert [keys.endswith("m=1") for keys, _ in pieces] == [True] * (len(pieces) - 1) + [False]
    assert pieces[0][0] == "a=T,f=100,q=2,C=1,c=20,r=10,m=1"
    assert all(len(data) <= 4096 for _, data in pieces)
    sent = Image.open(io.BytesIO(base64.standard_b64decode("".join(data for _, data in pieces))))
    assert sent.tobytes() == picture.tobytes()


def read_sixel(text: str) -> np.ndarray:
    """A picture out of sixels, by the rules of DEC's manual."""
    body = text.removeprefix("\x1bP0;1;0q").removesuffix("\x1b\\\n")
    width, height = map(int, re.match(r'"1;1;(\d+);(\d+)', body).groups())
    pixels = np.full((height + 5, width, 3), -1)
    palette: dict[int, list[int]] = {}
    x = y = colour = 0
    tokens = re.findall(
        r"#\d+;2;\d+;\d+;\d+|#\d+|!\d+[?-~]|[?-~]|\$|-", body.partition("#")[1] + body.partition("#")[2]
    )
    for token in tokens:
        if token == "$":
            x = 0
        elif token == "-":
            x, y = 0, y + 6
        elif token.startswith("#"):
            colour, *rest = map(int, token[1:].split(";"))
            if rest:
                palette[colour] = rest[1:]
        else:
            count = int(token[1:-1]) if token.startswith("!") else 1
            mask = ord(token[-1]) - 63
            for row in range(6):
                if mask >> row & 1:
                    pixels[y + row, x : x + count] = palette[colour]
            x += count
    assert (pixels[height:] == -1).all(), "nothing is drawn below the picture"
    return pixels[:height]


def test_sixels_read_back_are_the_picture() -> None:
    picture = gradient(40, 20)  # no whole number of bands
    got = read_sixel(preview.sixel(picture))
    assert (got >= 0).all(), "every pixel has a colour"
    assert np.abs(got * 2.55 - np.asarray(picture)).mean() < 12
    flat = Image.new("RGB", (30, 13), (255, 0, 0))
    assert (read_sixel(preview.sixel(flat)) == [100, 0, 0]).all()
    assert len(preview.sixel(flat)) < 80, "runs are written as runs"


@pytest.mark.parametrize("way", ["truecolor", "256", "letters"])
@pytest.mark.parametrize("size", [(128, 128), (300, 100), (10, 400), (1, 1)])
def test_a_picture_keeps_its_shape_and_fits(way: preview.Way, size: tuple[int, int]) -> None:
    text = preview.rendered(gradient(*size) if min(size) > 1 else Image.new("RGB", size), way, 79, 20)
    lines = re.sub(r"\x1b\[[\d;]*m", "", text).splitlines()
    assert len(lines) <= 20
    assert {len(line) for line in lines} == {len(lines[0])}
    assert 1 <= len(lines[0]) <= 79
    if size == (128, 128):
        assert (len(lines), len(lines[0])) == (20, 40)


# what a terminal can do


class Terminal:
    """The other end of a pseudo-terminal, that answers as it was told to."""

    def __init__(self, reply: bytes) -> None:
        import pty

        self.ours, theirs = pty.openpty()
        self.stream = os.fdopen(theirs, "w")
        self.queries = b""
        self._reply = reply
        self._thread = threading.Thread(target=self._answer, daemon=True)
        self._thread.start()

    def _answer(self) -> None:
        while not self.queries.endswith(b"\x1b[c"):
            self.queries += os.read(self.ours, 1024)
        os.write(self.ours, self._reply)

    def close(self) -> None:
        self.stream.close()
        os.close(self.ours)


@pytest.fixture
def attached(request: pytest.FixtureRequest) -> Iterator[Terminal]:
    pytest.importorskip("termios", reason="this platform has no terminals of its own")
    end = Terminal(request.param)
    yield end
    end.close()


PLAIN = {"TERM": "xterm-256color"}


@pytest.mark.parametrize(
    ("attached", "environment", "colour", "way"),
    [
        (b"\x1b_Gi=31;OK\x1b\\\x1b[?62;4c", PLAIN, True, "kitty"),
        (b"\x1b[?62;4;22c", PLAIN, True, "sixel"),
        (b"\x1b[?4c", {**PLAIN, "COLORTERM": "truecolor"}, True, "sixel"),
        (b"\x1b[?64;14;22c", PLAIN, True, "256"),
        (b"\x1b[?62;22c", {**PLAIN, "COLORTERM": "truecolor"}, True, "truecolor"),
        (b"\x1b[?62;22c", {**PLAIN, "COLORTERM": "truecolor"}, False, "letters"),
    ],
    indirect=["attached"],
)
def test_a_terminal_is_asked(attached: Terminal, environment: dict[str, str], colour: bool, way: str) -> None:
    import termios

    before = termios.tcgetattr(attached.stream.fileno())
    assert terminal.best_way(attached.stream, environment, colour=colour) == way
    assert attached.queries == terminal.QUERY
    assert termios.tcgetattr(attached.stream.fileno()) == before, "left as it was"


@pytest.mark.parametrize(
    ("environment", "way"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "dumb"}, "letters"),
        ({"TERM": "linux"}, "letters"),
        ({}, "letters"),
    ],
)
def test_some_need_not_be_asked(environment: dict[str, str], way: str) -> None:
    unasked = SimpleNamespace(fileno=lambda: pytest.fail("was asked"))
    assert terminal.best_way(unasked, environment, colour=True) == way


@pytest.mark.parametrize("attached", [b""], indirect=True)
def test_one_that_is_silent_is_not_waited_for(attached: Terminal) -> None:
    assert terminal.asked(attached.stream.fileno(), wait_s=0.01) == b""


def test_a_file_is_no_terminal(tmp_path: object) -> None:
    with open(os.devnull, "w") as file:
        assert terminal.asked(file.fileno()) == b""


# while a picture is drawn


class Written(Output):
    """An Output with a terminal that keeps what it is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.stderr = io.StringIO()
        self.stderr.isatty = lambda: True


def test_a_sketch_takes_the_place_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "linux")
    out = Written()
    screen = Screen(out)
    for _ in range(2):
        screen.sketch(Image.new("RGB", (8, 8)))
    screen.show(Image.new("RGB", (8, 8), "white"))
    first, *others = re.split(r"\x1b\[(\d+)A\r\x1b\[J", out.stderr.getvalue())
    rows = first.count("\n")
    assert rows > 3
    assert [others[0], others[2]] == [str(rows)] * 2
    assert [text.count("\n") for text in (first, others[1], others[3])] == [rows] * 3
    assert set(others[3]) == {"@", "\n"}
    screen.show(Image.new("RGB", (8, 8)))
    assert out.stderr.getvalue().count("\x1b[J") == 2, "a finished picture stays"
    screen.sketch(Image.new("RGB", (8, 8)))
    follow(SimpleNamespace(), screen)
    screen.sketch(Image.new("RGB", (8, 8)))
    assert out.stderr.getvalue().count("\x1b[J") == 2, "and so does one that was stopped"


def test_a_dumb_terminal_sees_the_finished_picture_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    out = Written()
    Screen(out).sketch(Image.new("RGB", (8, 8)))
    assert out.stderr.getvalue() == ""
    Screen(out).show(Image.new("RGB", (8, 8), "white"))
    assert set(out.stderr.getvalue()) == {"@", "\n"}


def test_without_a_terminal_or_under_quiet_nothing_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    out = Written()
    out.quiet = True
    assert Screen(out).way is None
    out.quiet, out.stderr = False, io.StringIO()
    screen = Screen(out)
    screen.show(gradient())
    screen.sketch(gradient())
    assert out.stderr.getvalue() == ""


def test_the_bar_moves_by_parts_of_pictures() -> None:
    moved: list[float] = []
    details: list[str] = []

    def advance(steps: float, detail: str) -> None:
        moved.append(steps)
        details.append(detail)

    told = follow(SimpleNamespace(advance=advance), None)
    # two batches, and a second run that counts from its own first picture
    for index, pictures in ((0, 3), (3, 1), (0, 2), (0, 2)):
        for done in (24, 48, 64):
            told(SimpleNamespace(index=index, pictures=pictures, done=done, codes=64))
    assert sum(moved) == pytest.approx(3 + 1 + 2 + 2)
    assert min(moved) > 0
    assert details[:3] == ["24 of 64 codes", "48 of 64 codes", ""]
