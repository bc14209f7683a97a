"""Many questions of a picture and states in files, with a whole small model behind them."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import omnimamba_cli as om
from omnimamba_cli.cli import models
from omnimamba_cli.engine.session import Session
from tests.cli.conftest import Result, Run

ASKED = ["what is here?", "how many?", "a?"]
Ask = Callable[..., Result]


@pytest.fixture(scope="module")
def session(tiny_model: Path) -> Session:
    return om.load(tiny_model, device="cpu")


@pytest.fixture
def looks(session: Session) -> list[int]:
    """A number for every time that the image encoders ran."""
    runs: list[int] = []
    handle = session.towers.register_forward_hook(lambda *_: runs.append(1))
    yield runs
    handle.remove()


@pytest.fixture
def ask(run: Run, session: Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ask:
    """`omnimamba caption` with the small model, in a folder with red.png and blue.png."""
    monkeypatch.setattr(models, "open_session", lambda *_, **__: session)
    for colour in ("red", "blue"):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{colour}.png")
    return lambda *arguments: run("caption", *arguments)


def options(*questions: str) -> list[str]:
    return [word for question in questions for word in ("-p", question)]


def folded(text: str) -> str:
    return " ".join(text.split("\n")).replace("\t", " ").replace("\r", " ")


def test_several_questions_are_a_line_each_and_one_look(
    ask: Ask, session: Session, looks: list[int], tmp_path: Path
) -> None:
    result = ask("red.png", *options(*ASKED))
    assert (result.code, result.err, len(looks)) == (0, "", 1)
    want = [f"{question}\t{folded(session.caption(tmp_path / 'red.png', question))}" for question in ASKED]
    assert result.out.split("\n") == [*want, ""]


def test_with_several_pictures_the_name_comes_first(ask: Ask, looks: list[int]) -> None:
    lines = ask("red.png", "blue.png", *options(*ASKED)).out.splitlines()
    assert [line.split("\t")[:2] for line in lines] == [[f"{c}.png", q] for c in ("red", "blue") for q in ASKED]
    assert len(looks) == 2


@pytest.mark.parametrize("batch_size", ["1", "2", "9"])
def test_questions_of_a_file_join_those_of_the_line(ask: Ask, tmp_path: Path, batch_size: str) -> None:
    (tmp_path / "questions.txt").write_text("\n".join(ASKED[1:]) + "\n\n")
    result = ask("red.png", "-p", ASKED[0], "--questions", "questions.txt", "--batch-size", batch_size)
    assert result.out == ask("red.png", *options(*ASKED)).out


def test_questions_come_through_a_pipe(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(ASKED).encode())))
    assert ask("red.png", "--questions", "-").out == ask("red.png", *options(*ASKED)).out


def test_json_names_the_question(ask: Ask) -> None:
    records = [json.loads(line) for line in ask("red.png", *options(*ASKED), "--json").out.splitlines()]
    assert [(record["image"], record["question"]) for record in records] == [("red.png", q) for q in ASKED]
    single = json.loads(ask("red.png", "-p", ASKED[0], "--json").out)
    assert records[0].keys() == single.keys()
    assert records[0]["caption"] == single["caption"]


def test_every_answer_has_a_seed_of_its_own(ask: Ask) -> None:
    sampled = ["--temperature", "1", "--seed", "7", "--json"]
    both = ask("red.png", "blue.png", *options(*ASKED), *sampled).out.splitlines()
    records = [json.loads(line) for line in both]
    assert [record["seed"] for record in records] == list(range(7, 13))
    again = json.loads(ask("blue.png", "-p", ASKED[1], "--temperature", "1", "--seed", "11", "--json").out)
    assert again["caption"] == records[4]["caption"]


def test_a_bad_picture_is_passed_over(ask: Ask) -> None:
    result = ask("red.png", "gone.png", "blue.png", *options(*ASKED), "--temperature", "1", "--seed", "0", "--json")
    assert result.code == 6
    assert [json.loads(line)["seed"] for line in result.out.splitlines()] == [0, 1, 2, 6, 7, 8]
    assert result.err == "error: gone.png: no such file\n1 of 3 pictures failed\n"
    assert ask("gone.png", "red.png", *options(*ASKED), "--fail-fast").out == ""
    assert ask("gone.png", *options(*ASKED)).code == 3


def test_an_append_file_goes_on_question_by_question(ask: Ask, looks: list[int], tmp_path: Path) -> None:
    assert ask("red.png", *options(*ASKED[:2]), "--append", "a.jsonl").code == 0
    looks.clear()
    again = ask("red.png", *options(*ASKED[:2]), "--append", "a.jsonl")
    assert (again.code, again.err, looks) == (0, "2 were done before\n", [])
    assert ask("red.png", "blue.png", *options(*ASKED), "--append", "a.jsonl").code == 0
    assert len(looks) == 2
    records = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [(r["image"], r["question"]) for r in records] == [
        *[("red.png", question) for question in ASKED],
        *[("blue.png", question) for question in ASKED],
    ]
    assert all(len(r["sha256"]) == 64 for r in records)


def test_a_list_may_have_questions_of_its_own(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "list").write_text('red.png\n{"image": "blue.png", "question": "own?"}\ngone.png\n')
    result = ask("--from", "list", *options(*ASKED), "--json")
    records = [json.loads(line) for line in result.out.splitlines()]
    assert [(r["image"], r["question"]) for r in records] == [*[("red.png", q) for q in ASKED], ("blue.png", "own?")]
    assert result.code == 6
    assert "gone.png: no such file" in result.err


# states


def test_a_state_takes_the_pictures_place(ask: Ask, looks: list[int]) -> None:
    kept = ask("red.png", "what is here?", "--save-state", "red.state")
    assert kept.code == 0
    assert kept.err == "red.state: what tiny knows of red.png\n"
    assert kept.out == ask("red.png", "what is here?", "--no-stream").out
    looks.clear()
    assert ask("--load-state", "red.state", "what is here?").out == kept.out
    assert ask("--load-state", "red.state", "-p", "what is here?", "--no-stream").out == kept.out
    several = ask("--load-state", "red.state", *options(*ASKED), "--json").out
    assert looks == []
    records = [json.loads(line) for line in several.splitlines()]
    assert {record["image"] for record in records} == {"red.state"}
    assert [r["caption"] for r in records] == [
        json.loads(line)["caption"] for line in ask("red.png", *options(*ASKED), "--json").out.splitlines()
    ]


def test_the_default_question_needs_no_words(ask: Ask) -> None:
    ask("red.png", "--save-state", "red.state")
    assert ask("--load-state", "red.state").out == ask("red.png").out
    assert json.loads(ask("--load-state", "red.state", "--json").out)["question"] == "what is here?"


def test_an_existing_state_is_kept_without_force(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "red.state").write_bytes(b"old")
    result = ask("red.png", "--save-state", "red.state")
    assert (result.code, result.out) == (3, "")
    assert (tmp_path / "red.state").read_bytes() == b"old"
    assert ask("red.png", "--save-state", "red.state", "--force").code == 0
    assert ask("--load-state", "red.state").code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["red.png", "--load-state", "a.state", "-p", "a?"], 2, "takes the place of the picture"),
        (["--load-state", "a.state", "a?", "b?"], 2, "takes the place of the picture"),
        (["--load-state", "a.state", "--save-state", "b.state"], 2, "contradict"),
        (["red.png", "blue.png", "--save-state", "b.state"], 2, "one picture, here are more"),
        (["red.png", "-p", "a?", "-p", "b?", "-o", "{stem}.txt"], 2, "-o keeps one answer a picture"),
        (["-", "--questions", "-"], 2, "stdin is asked for twice"),
        (["--load-state", "gone.state"], 3, "gone.state: no such file"),
        (["--load-state", "red.png"], 3, "red.png: no state of a picture"),
        (["red.png", "--questions", "gone.txt"], 3, "gone.txt: no such file"),
        (["red.png", "--questions", "/dev/null"], 3, "/dev/null: holds no question"),
        (["red.png", "--save-state", "gone/a.state"], 3, "there is no folder gone"),
    ],
)
def test_what_cannot_be_is_said(ask: Ask, arguments: list[str], code: int, words: str) -> None:
    result = ask(*arguments)
    assert (result.code, result.out) == (code, "")
    assert words in result.err
