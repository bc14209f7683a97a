"""`omnimamba chat` through a pipe and at a terminal, with a whole small model behind it."""

import io
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

import omnimamba_cli as om
from omnimamba_cli.cli import chat, models
from omnimamba_cli.cli.keyboard import Keyboard, history_file
from omnimamba_cli.cli.output import Output
from omnimamba_cli.cli.talk import COMMANDS, Settings, Talk
from omnimamba_cli.engine.conversation import Seen
from omnimamba_cli.engine.events import TextEvent
from omnimamba_cli.engine.session import Session
from tests.cli.conftest import Result, Run, command_line, environment

Say = Callable[..., Result]


def lines_of(text: str) -> list[str]:
    """Lines as a pipe cuts them: a random model also writes other characters that Python takes for line ends."""
    return text.removesuffix("\n").split("\n")


@pytest.fixture(scope="module")
def session(tiny_model: Path) -> Session:
    return om.load(tiny_model, device="cpu")


@pytest.fixture
def say(run: Run, session: Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Say:
    """`say("red.png", lines=["a?"])`: lines through a pipe, in a folder with red.png and blue.png."""
    monkeypatch.setattr(models, "open_session", lambda *_, **__: session)
    for colour in ("red", "blue"):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{colour}.png")

    def call(*arguments: str, lines: list[str]) -> Result:
        data = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        return run("chat", *arguments)

    return call


def answer(session: Session, picture: Path, question: str) -> str:
    return " ".join(session.caption(picture, question).split())


# through a pipe


def test_each_line_is_a_question_and_each_answer_a_line(say: Say, session: Session, tmp_path: Path) -> None:
    questions = ["what is here?", "how many?", "", "what is here?"]
    result = say("red.png", lines=questions)
    assert (result.code, result.err) == (0, "")
    want = [answer(session, tmp_path / "red.png", question) for question in questions if question]
    assert [" ".join(line.split()) for line in result.out.split("\n")] == [*want, ""]


def test_the_picture_is_looked_at_once(say: Say, session: Session) -> None:
    looks: list[int] = []
    handle = session.towers.register_forward_hook(lambda *_: looks.append(1))
    say("red.png", lines=["a?", "b?", "/reset", "c?"])
    assert len(looks) == 1
    say("red.png", lines=["a?", "/image blue.png", "b?"])
    assert len(looks) == 3
    handle.remove()


def test_json_has_a_record_for_each_answer(say: Say, session: Session, tmp_path: Path) -> None:
    result = say("red.png", "--json", lines=["a?", "/image blue.png", "b?"])
    records = [json.loads(line) for line in result.out.splitlines()]
    assert [(r["image"], r["question"], r["model"]) for r in records] == [
        ("red.png", "a?", "tiny"),
        ("blue.png", "b?", "tiny"),
    ]
    assert records[1]["caption"] == session.caption(tmp_path / "blue.png", "b?")
    assert records[1].keys() == {"schema", "image", "question", "caption", "finish_reason", "tokens", "seed", "model"}


def test_a_line_that_fails_is_told_and_the_others_are_done(say: Say) -> None:
    lines = ["a?", "/nope", "/image", "/image gone.png", "/draw", "/save", "/follow maybe", "/image -", "/save a.gif"]
    result = say("red.png", lines=[*lines, "z" * 2000, "a?"])
    assert result.code == 6
    first, last = lines_of(result.out)
    assert first == last
    assert result.err.count("error: ") == len(lines)
    for words in ("no command /nope", "gone.png: no such file", "/draw needs a prompt", "the question has"):
        assert words in result.err


def test_a_mistyped_command_is_answered_with_the_nearest(say: Say) -> None:
    assert "hint: did you mean '/image'?" in say("red.png", lines=["/imgae fox.png"]).err


def test_without_a_picture_a_question_says_how_to_get_one(say: Say) -> None:
    result = say(lines=["a?", "/save fox.png", "/save fox.state"])
    assert (result.code, result.out) == (6, "")
    assert result.err.count("hint: /image FILE or /draw PROMPT") == 3


def test_help_lists_every_command_and_quit_ends(say: Say) -> None:
    result = say(lines=["/help", "/quit", "/help"])
    assert [line.split()[0] for line in result.out.splitlines()] == list(COMMANDS)
    assert max(map(len, result.out.splitlines())) <= 80


def test_bytes_that_are_no_text_are_asked_all_the_same(say: Say) -> None:
    assert say("red.png", lines=["caf\udce9?"]).code == 0


def test_a_drawing_is_talked_about_and_kept(say: Say, session: Session, tmp_path: Path) -> None:
    result = say("--seed", "5", lines=["/draw a red fox", "what is here?", "/save fox.png", "/draw a cat"])
    drawn = session.generate("a red fox", seed=5)[0]
    assert result.code == 0
    said, path = lines_of(result.out)
    assert (path, " ".join(said.split())) == ("fox.png", " ".join(session.caption(drawn, "what is here?").split()))
    with Image.open(tmp_path / "fox.png") as kept:
        assert kept.tobytes() == drawn.tobytes()
        assert (kept.text["prompt"], kept.text["seed"]) == ("a red fox", "5")
    assert result.err.splitlines() == ["seed 5; /save a-red-fox.png keeps it", "seed 6; /save a-cat.png keeps it"]


def test_what_was_said_and_what_is_known_are_kept(say: Say, tmp_path: Path) -> None:
    result = say("red.png", lines=["a?", "b?", "/save talk.txt", "/save red.state", "/save red.jpg", "/reset"])
    assert result.code == 0
    first, second, *saved = lines_of(result.out)
    assert saved == ["talk.txt", "red.state", "red.jpg"]
    assert (tmp_path / "talk.txt").read_text() == f"# red.png\na?\t{first.strip()}\nb?\t{second.strip()}\n"
    with Image.open(tmp_path / "red.jpg") as kept:
        assert kept.format == "JPEG"
    again = say("--load-state", "red.state", lines=["a?", "/save new.png", "/save talk.txt"])
    assert lines_of(again.out) == [first]
    assert "of red.state there is only the state" in again.err
    assert "talk.txt: exists and is not overwritten" in again.err


def test_questions_follow_on_each_other_where_it_is_asked(say: Say, session: Session, tmp_path: Path) -> None:
    lines = ["a?", "b?"]
    seen = session.look(tmp_path / "red.png")
    want = []
    for line in lines:
        want.append(seen.ask(line))
        seen = seen.after(line, want[-1])
    got = [json.loads(line)["caption"] for line in say("red.png", "--follow", "--json", lines=lines).out.splitlines()]
    assert got == want
    alone = session.caption(tmp_path / "red.png", "b?")
    assert alone != want[1]
    switched = say("red.png", "--json", lines=["/follow on", *lines, "/follow off", "b?", "/follow on", "b?"]).out
    assert [json.loads(line)["caption"] for line in switched.splitlines()] == [*want, alone, alone]


def test_what_is_longer_than_training_is_forgotten_with_a_word(say: Say) -> None:
    result = say("red.png", "--follow", lines=["how many things are there?"] * 6)
    assert result.code == 0
    assert "longer than in the model's training" in result.err


@pytest.mark.parametrize(
    ("options", "history", "shows", "follows"),
    [
        ([], True, True, False),
        (["--history", "--show", "--follow"], True, True, True),
        (["--no-history", "--no-show", "--no-follow"], False, False, False),
    ],
)
def test_history_pictures_and_following_are_options(
    say: Say, monkeypatch: pytest.MonkeyPatch, options: list[str], history: bool, shows: bool, follows: bool
) -> None:
    chats: list[tuple[bool, bool, bool]] = []

    def converse(out: Output, talk: Talk, keyboard: Keyboard) -> int:
        chats.append((keyboard._history is not None, talk.screen is not None, talk.settings.follow))
        return 0

    monkeypatch.setattr(chat, "converse", converse)
    assert say("red.png", *options, lines=[]).code == 0
    assert chats == [(history, shows, follows)]


@pytest.mark.parametrize("form", ["training", "Q {question} A"])
def test_a_template_reaches_the_question(say: Say, session: Session, tmp_path: Path, form: str) -> None:
    written = {"training": "In: {question}\nOut:"}.get(form, form)
    result = say("red.png", "--template", form, "--json", lines=["a?"])
    assert json.loads(result.out)["caption"] == session.caption(tmp_path / "red.png", "a?", template=written)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["gone.png"], 3, "gone.png: no such file"),
        (["-"], 2, "stdin is where the questions come from"),
        (["red.png", "--load-state", "a.state"], 2, "takes the place of the picture"),
        (["--load-state", "gone.state"], 3, "gone.state: no such file"),
        (["red.png", "--temperature", "-1"], 2, "temperature"),
    ],
)
def test_what_cannot_be_is_said_at_once(say: Say, arguments: list[str], code: int, words: str) -> None:
    result = say(*arguments, lines=["a?"])
    assert (result.code, result.out) == (code, "")
    assert words in result.err


# Ctrl-C


class Typed:
    """A keyboard with lines to come, at a terminal or not."""

    def __init__(self, lines: list[str], *, is_terminal: bool) -> None:
        self.lines, self.is_terminal, self.closed = iter(lines), is_terminal, 0

    def line(self) -> str | None:
        return next(self.lines, None)

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("is_terminal", [True, False])
def test_ctrl_c_stops_the_answer_and_at_a_terminal_not_the_program(
    session: Session,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    is_terminal: bool,
) -> None:
    closed: list[str] = []
    real = Seen.stream

    def stream(self: Seen, question: str, **options: object) -> Iterator[TextEvent]:
        if question != "stop":
            yield from real(self, question, **options)
            return
        try:
            yield TextEvent("half an ans")
            raise KeyboardInterrupt
        finally:
            closed.append(question)

    monkeypatch.setattr(Seen, "stream", stream)
    out = Output()
    settings = Settings(session.config.caption_sampling, None, None, follow=True, lines=True)
    talk = Talk(out, session, settings)
    red = Image.new("RGB", (8, 8), "red")
    talk.look("red.png", red)
    keyboard = Typed(["stop", "a?"], is_terminal=is_terminal)
    if not is_terminal:
        with pytest.raises(KeyboardInterrupt):
            chat.converse(out, talk, keyboard)
        assert capsys.readouterr().out == "half an ans\n"
    else:
        assert chat.converse(out, talk, keyboard) == 0
        first, second = lines_of(capsys.readouterr().out)
        assert (first, second.strip()) == ("half an ans", " ".join(session.caption(red, "a?").split("\n")))
        assert [question for question, _ in talk.said] == ["a?"], "half an answer is not remembered"
    assert (closed, keyboard.closed) == (["stop"], 1)


# at a terminal


def test_names_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fox.png").touch()
    (tmp_path / "folder").mkdir()
    keyboard = Keyboard(Output(), list(COMMANDS), history=None)
    (tmp_path / "my photo.png").touch()
    assert keyboard.completions("/i") == ["/image "]
    assert keyboard.completions("/image fo") == [f"/image folder{os.sep}", "/image fox.png"]
    assert keyboard.completions("/image my p") == ["/image my photo.png"]
    assert keyboard.completions("wh") == keyboard.completions("what fo") == []


def test_the_history_lies_where_the_platform_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert history_file() == tmp_path / "omnimamba" / "history"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert history_file().is_absolute()


def typed(fd: int, keys: list[tuple[str, str]]) -> str:
    """Waits for each text and then types; returns all that the program wrote until it ended."""
    seen = whole = typed_last = ""
    for wanted, answer in [*keys, ("", "")]:
        end = time.monotonic() + 60
        while not wanted or wanted not in seen:
            assert time.monotonic() < end, f"no {wanted!r} in {seen!r} after {whole[-400:]!r}"
            if not select.select([fd], [], [], 3)[0]:
                if typed_last == "\x03":  # Python's readline misses one that comes between two of its looks
                    os.write(fd, b"\x03")
                continue
            try:
                data = os.read(fd, 65536)
            except OSError:  # Linux: the program has ended
                data = b""
            if not data:
                assert not wanted, f"ended without {wanted!r}: {seen!r}"
                return whole
            seen += data.decode("utf-8", "replace")
            whole += data.decode("utf-8", "replace")
        seen = seen.partition(wanted)[2]
        os.write(fd, answer.encode())
        typed_last = answer
    return whole


def test_a_terminal_has_a_prompt_editing_a_history_and_an_end(tiny_model: Path, tmp_path: Path) -> None:
    pty = pytest.importorskip("pty", reason="this platform has no terminals of its own")
    pytest.importorskip("readline", reason="this Python has no readline")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    pid, fd = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        os.chdir(tmp_path)
        more = {"XDG_STATE_HOME": str(tmp_path / "state"), "TERM": "xterm", "OMNIMAMBA_MODEL": str(tiny_model)}
        os.execve(sys.executable, command_line("chat", "--device", "cpu"), environment(**more))
    keys = [
        ("\n> ", "/im\t"),
        ("/image ", "re\t\n"),
        ("red.png", ""),
        ("\n> ", "given up"),
        ("given up", "\x03"),
        ("\n> ", "a?\n"),
        ("\n> ", "/draw a fox\n"),
        ("\x1b[c", "\x1b[?62;22c"),  # the terminal says what it is: no sixels
        ("\x1b[0m", ""),  # half blocks
        ("\n> ", "\x1b[A\x1b[A\n"),  # two lines back
        ("\n> ", "\x04"),
    ]
    try:
        text = typed(fd, keys)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        status = os.waitpid(pid, 0)[1]
        os.close(fd)
    assert os.waitstatus_to_exitcode(status) == 0
    assert "tiny: ask after /image FILE or /draw PROMPT; /help lists the commands, Ctrl-D ends" in text
    assert "Traceback" not in text
    lines = (tmp_path / "state" / "omnimamba" / "history").read_text().splitlines()
    assert lines == ["/image red.png", "a?", "/draw a fox", "a?"]
