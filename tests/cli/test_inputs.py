import io
import os
import sys
from pathlib import Path

import pytest

from omnimamba_cli.cli import inputs
from omnimamba_cli.cli.inputs import Picture
from omnimamba_cli.errors import InputError, UsageError
from tests.cli.conftest import Run


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.jpg", "picture", "what is this"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder").mkdir()


def give_stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.mark.parametrize(
    ("arguments", "prompt", "names", "question"),
    [
        (["a.png"], None, ["a.png"], None),
        (["a.png", "what?"], None, ["a.png"], "what?"),
        (["a.png", "b.jpg"], None, ["a.png", "b.jpg"], None),
        (["a.png", "b.jpg", "what?"], None, ["a.png", "b.jpg"], "what?"),
        (["a.png", "picture"], None, ["a.png", "picture"], None),
        (["a.png", "missing.png"], None, ["a.png", "missing.png"], None),
        (["a.png", "missing.JPEG"], None, ["a.png", "missing.JPEG"], None),
        (["missing"], None, ["missing"], None),
        (["-", "what?"], None, ["-"], "what?"),
        (["a.png", "-"], None, ["a.png", "-"], None),
        (["a.png", "folder"], None, ["a.png"], "folder"),
        (["a.png", "what is this"], None, ["a.png", "what is this"], None),
        (["a.png", "what?"], "which?", ["a.png", "what?"], "which?"),
        (["a.png", ""], None, ["a.png"], ""),
        (["a.png", "why " * 2500], None, ["a.png"], "why " * 2500),
        (["a.png", "nul\0byte"], None, ["a.png"], "nul\0byte"),
        (["a.png", "\udcff?"], None, ["a.png"], "\ufffd?"),
        ([], None, [], None),
    ],
)
def test_pictures_and_question_are_told_apart(
    arguments: list[str], prompt: str | None, names: list[str], question: str | None
) -> None:
    pictures, asked = inputs.split_question(arguments, prompt)
    assert [p.name for p in pictures] == names
    assert asked == question


@pytest.mark.parametrize(
    ("name", "words"),
    [("nothing.png", "no such file"), ("folder", "is a folder"), ("dead", "link"), ("a\0b", "no such file")],
)
def test_what_is_no_file_is_refused_by_name(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "dead").symlink_to("gone")
    with pytest.raises(InputError, match=words) as caught:
        Picture(name).source()
    assert caught.value.message.startswith(name)


def test_stdin_is_read_for_a_dash_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    give_stdin(monkeypatch, b"bytes")
    assert Picture("a.png").source() == Path("a.png")
    assert Picture("-").source() == b"bytes"


def test_empty_stdin_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    give_stdin(monkeypatch, b"")
    with pytest.raises(InputError, match="stdin is empty"):
        Picture("-").source()


def test_stdin_serves_one_input_only() -> None:
    with pytest.raises(UsageError, match="twice"):
        inputs.split_question(["-", "-"], None)
    with pytest.raises(UsageError, match="twice"):
        prompts("-", "-")


@pytest.mark.parametrize(
    ("data", "nul", "entries"),
    [
        (b"a\nb\n", False, ["a", "b"]),
        (b"a\r\n\n  \nb", False, ["a", "b"]),
        (b"a\nb\0c\0", True, ["a\nb", "c"]),
        ("狐\n".encode(), False, ["狐"]),
        (b"\xff\n", False, [os.fsdecode(b"\xff")]),
    ],
)
def test_lists_hold_one_entry_a_line_or_nul(tmp_path: Path, data: bytes, nul: bool, entries: list[str]) -> None:
    (tmp_path / "list").write_bytes(data)
    assert inputs.read_list("list", nul) == entries


def prompts(argument: str | None, from_file: str | None) -> list[str]:
    found = []
    for wish in inputs.wishes(argument, from_file, False):
        if isinstance(wish, InputError):
            raise wish
        found.append(wish.prompt)
    return found


def test_prompts_come_from_argument_stdin_and_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "list").write_text("a cat\na dog\n")
    give_stdin(monkeypatch, b"a fox\na hen\n")
    assert prompts("", None) == [""]
    assert prompts("a bee", "list") == ["a bee", "a cat", "a dog"]
    assert prompts("-", None) == ["a fox", "a hen"]


def test_no_prompt_at_all_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    give_stdin(monkeypatch, b"\n")
    with pytest.raises(UsageError):
        prompts(None, None)
    with pytest.raises(InputError, match="stdin"):
        prompts("-", None)
    with pytest.raises(InputError, match="no such file"):
        prompts(None, "missing")


@pytest.mark.parametrize("text", ["", "\n  \n"])
@pytest.mark.parametrize(
    ("command", "what"),
    [(("caption", "--from"), "picture"), (("generate", "-o", "x.png", "--from"), "prompt")],
)
def test_a_list_of_nothing_is_an_error_in_every_command(
    run: Run, tmp_path: Path, command: tuple[str, ...], what: str, text: str
) -> None:
    (tmp_path / "list").write_text(text)
    result = run(*command, "list")
    assert (result.code, result.out) == (3, "")
    assert f"error: list: holds no {what}; write one a line\n" in result.err
    named = "fox.png" if what == "picture" else "a fox"
    assert "holds no" not in run(command[0], named, *command[1:], "list", "--dry-run").err
