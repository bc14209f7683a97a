"""The shell examples, each as a user runs it, by the shell that knows least."""

import csv
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests import quick_start

SHELL = Path(__file__).parents[2] / "examples" / "shell"
RUNNER = shutil.which("dash") or shutil.which("sh") or ""
Example = Callable[..., "subprocess.CompletedProcess[str]"]

pytestmark = pytest.mark.skipif(not RUNNER or not hasattr(os, "fork"), reason="needs a POSIX system with its shell")


@pytest.fixture(scope="module")
def command() -> Iterator[Path]:
    """The program as a script finds it."""
    # not pytest's folder: the name of a socket has about a hundred characters at most
    with tempfile.TemporaryDirectory() as folder, quick_start.server(Path(folder)) as found:
        yield found


@pytest.fixture
def example(tiny_model: Path, tmp_path: Path, command: Path) -> Example:
    """`example("gallery.sh", "photos")`, in an empty folder; fails on any code but the one expected."""
    environment = {
        **os.environ,
        "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}",
        "OMNIMAMBA_MODEL": str(tiny_model),
        "OMNIMAMBA_DEVICE": "cpu",
    }
    (tmp_path / "work").mkdir()

    def call(script: str, *arguments: str, code: int = 0, **more: str) -> "subprocess.CompletedProcess[str]":
        runner = ["make", "-f"] if script.endswith(".mk") else [RUNNER]
        done = subprocess.run(
            [*runner, str(SHELL / script), *arguments],
            cwd=tmp_path / "work",
            env={**environment, **more},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=240,
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done

    return call


@pytest.fixture
def work(tmp_path: Path, example: Example) -> Path:
    """The folder that the examples run in."""
    return tmp_path / "work"


def pictures(folder: Path, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    for i, name in enumerate(names):
        Image.new("RGB", (8, 8), (40 * i, 90, 200)).save(folder / name)


def test_a_gallery_is_a_table_and_a_page(example: Example, work: Path) -> None:
    names = ['a "b" <c>.png', "50% off?.jpg", "d#1,e.png"]
    pictures(work / "photos", *names)
    (work / "photos" / "broken.jpg").write_text("no picture")
    assert "error: ./broken.jpg: not a picture" in example("gallery.sh").stderr
    with (work / "photos" / "captions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["file", "caption"]
    assert sorted(name for name, _ in rows[1:]) == sorted(f"./{name}" for name in names)
    page = (work / "photos" / "index.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == 3
    for link in ("./a &quot;b&quot; &lt;c>.png", "./50%25 off%3F.jpg", "./d%231,e.png"):
        assert f'<img src="{link}" alt="' in page


@pytest.mark.skipif(shutil.which("xargs") is None, reason="needs xargs")
def test_prompts_are_drawn_in_parallel_and_go_on(example: Example, work: Path) -> None:
    (work / "prompts.txt").write_text('a red fox\ntwo cats\nit\'s "quoted" $HOME\n')
    want = ["pictures/a-red-fox-7.png", "pictures/it-s-quoted-home-7.png", "pictures/two-cats-8.png"]
    assert sorted(example("parallel.sh", PROMPTS_EACH="2").stdout.split()) == want
    # nothing is left to be drawn: no model is opened
    assert example("parallel.sh", PROMPTS_EACH="2", OMNIMAMBA_MODEL="there is no such model").stdout == ""


@pytest.mark.skipif(shutil.which("jq") is None, reason="needs jq")
def test_json_lines_go_through_jq(example: Example, work: Path) -> None:
    pictures(work / "photos", "a.png", "b.png")
    printed = example("jsonl.sh").stdout.split()
    answers = [json.loads(line) for line in (work / "photos" / "answers.jsonl").read_text().splitlines()]
    assert [answer["image"] for answer in answers] == ["./a.png"] * 3 + ["./b.png"] * 3
    assert sorted(printed) == ["./a.png", "./b.png"]
    with (work / "photos" / "answers.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.reader(file))
    assert [row[0] for row in table] == ["./a.png", "./b.png"]
    assert table[0][1:] == [answer["caption"] for answer in answers[:3]]
    drawn = [json.loads(line) for line in (work / "photos" / "drawn.jsonl").read_text().splitlines()]
    assert [(one["path"], one["seed"]) for one in drawn] == [("again/1.png", 1), ("again/2.png", 2)]
    assert (work / "photos" / "again" / "2.png").is_file()


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_makes_what_is_missing_and_no_more(example: Example, work: Path) -> None:
    (work / "fox.prompt").write_text("a red fox\n")
    example("pictures.mk")
    assert (work / "fox.png.txt").stat().st_size > 0
    with Image.open(work / "fox.png") as picture:
        assert picture.text["prompt"] == "a red fox"
    assert "Nothing to be done" in example("pictures.mk").stdout
    example("pictures.mk", "clean")
    assert [path.name for path in work.iterdir()] == ["fox.prompt"]


def test_a_nightly_batch_does_what_is_new(example: Example, work: Path) -> None:
    photos = work / "photos"
    pictures(photos, "a.png", "b c.png")
    ended = subprocess.Popen([RUNNER, "-c", "exit 0"])
    ended.wait()
    (photos / ".captions.lock").write_text(f"{ended.pid}\n")  # left from a crash
    done = example("nightly.sh", "photos")
    assert done.stdout == done.stderr == "", "cron would send a mail"
    table = photos / "captions.tsv"
    first = table.read_bytes().splitlines(keepends=True)
    assert [line.split(b"\t")[0] for line in first] == [b"./a.png", b"./b c.png"]
    # nothing new: nothing is started
    example("nightly.sh", "photos", OMNIMAMBA_MODEL="there is no such model")
    assert table.read_bytes() == b"".join(first)
    # a crash cut the last line off; another picture has come, and one that is none
    table.write_bytes(b"".join(first)[:-3])
    pictures(photos, "new.png")
    (photos / "bad.png").write_text("no picture")
    assert example(
        "nightly.sh", "photos", code=6
    ).stderr == "error: ./bad.png: not a picture this program can read\n" + ("hint: PNG, JPEG, WebP, GIF, ...\n")
    lines = table.read_bytes().splitlines(keepends=True)
    assert lines[:2] == first
    assert [line.split(b"\t")[0] for line in lines[2:]] == [b"./new.png"]
    assert sorted(path.name for path in photos.iterdir()) == ["a.png", "b c.png", "bad.png", "captions.tsv", "new.png"]


def test_a_nightly_batch_runs_once_at_a_time(example: Example, work: Path) -> None:
    pictures(work / "photos", "a.png")
    lock = work / "photos" / ".captions.lock"
    lock.write_text(f"{os.getpid()}\n")
    example("nightly.sh", "photos")
    assert sorted(path.name for path in (work / "photos").iterdir()) == [lock.name, "a.png"]
