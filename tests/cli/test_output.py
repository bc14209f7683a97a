import io
import json
import sys

import pytest

from omnimamba_cli.cli.output import ColorChoice, Output, wants_color
from omnimamba_cli.errors import InputError


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def make(*, terminal: bool = False, quiet: bool = False, verbose: int = 0, color: ColorChoice = "auto") -> Output:
    out = Output()
    kind = Terminal if terminal else io.StringIO
    out.stdout, out.stderr = kind(), kind()
    out.configure(quiet=quiet, verbose=verbose, color=color)
    return out


def written(out: Output) -> tuple[str, str]:
    assert isinstance(out.stdout, io.StringIO)
    assert isinstance(out.stderr, io.StringIO)
    return out.stdout.getvalue(), out.stderr.getvalue()


@pytest.mark.parametrize("text", ["[red]STOP", "list[int]", "a [/b] tag", ":smile:", "word " * 60, "\U0001f98a é 狐"])
@pytest.mark.parametrize("terminal", [True, False])
def test_model_text_is_written_as_it_is(text: str, terminal: bool) -> None:
    out = make(terminal=terminal)
    out.line(text)
    out.piece(text)
    assert written(out) == (f"{text}\n{text}", "")


@pytest.mark.parametrize(
    ("quiet", "verbose", "shown"),
    [(False, 0, "note\n"), (True, 0, ""), (False, 1, "note\ndetail\n"), (False, 2, "note\ndetail\n")],
)
def test_talk_follows_quiet_and_verbose(quiet: bool, verbose: int, shown: str) -> None:
    out = make(quiet=quiet, verbose=verbose)
    out.note("note")
    out.detail("detail")
    assert written(out) == ("", shown)


def test_errors_are_shown_under_quiet() -> None:
    out = make(quiet=True)
    out.error("it broke", "mend it")
    assert written(out) == ("", "error: it broke\nhint: mend it\n")


@pytest.mark.parametrize(
    ("choice", "variables", "terminal", "expected"),
    [
        ("auto", {}, True, True),
        ("auto", {}, False, False),
        ("auto", {"NO_COLOR": "1"}, True, False),
        ("auto", {"FORCE_COLOR": "1"}, False, True),
        ("auto", {"NO_COLOR": "1", "FORCE_COLOR": "1"}, True, False),
        ("always", {"NO_COLOR": "1"}, False, True),
        ("never", {"FORCE_COLOR": "1"}, True, False),
        ("auto", {"NO_COLOR": ""}, True, True),
    ],
)
def test_colour_is_decided_by_option_then_environment_then_terminal(
    monkeypatch: pytest.MonkeyPatch, choice: ColorChoice, variables: dict[str, str], terminal: bool, expected: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert wants_color(choice, Terminal() if terminal else io.StringIO()) is expected


def test_colour_never_reaches_a_pipe_by_itself() -> None:
    out = make()
    out.error("it broke")
    assert "\x1b" not in written(out)[1]


def test_record_is_one_line_of_json_with_the_schema() -> None:
    out = make()
    out.record({"caption": "a\nb \U0001f98a"})
    text, _ = written(out)
    assert text.count("\n") == 1
    assert json.loads(text) == {"schema": 1, "caption": "a\nb \U0001f98a"}


def test_record_of_an_undecodable_name_is_valid_utf8() -> None:
    out = make()
    out.record({"image": "fox\udcff.png"})
    text, _ = written(out)
    assert json.loads(text.encode("utf-8"))["image"] == "fox\udcff.png"


def test_progress_is_drawn_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    shown = {}
    for terminal, quiet in [(True, False), (True, True), (False, False)]:
        out = make(terminal=terminal, quiet=quiet)
        with out.progress("drawing", total=2) as bar:
            bar.advance(detail="[red]x")
            out.line("fox.png")
        shown[terminal, quiet] = written(out)
    assert "drawing" in shown[True, False][1]
    assert shown[True, True] == shown[False, False] == ("fox.png\n", "")
    assert shown[True, False][0] == "fox.png\n"


def test_binary_to_a_terminal_is_refused() -> None:
    with pytest.raises(InputError, match="terminal"):
        make(terminal=True).binary(b"\x89PNG")


def test_table_aligns_numbers_to_the_right() -> None:
    out = make()
    out.table(["split", "right"], [["seen", "9"], ["unseen", "100"]])
    assert written(out)[0] == "split   right\nseen        9\nunseen    100\n"


def test_a_table_keeps_its_columns_whatever_a_name_holds() -> None:
    out = make()
    out.table(["model", "size"], [["a\tb\n", "9"]])
    assert written(out)[0] == "model   size\na\\tb\\n     9\n"


def test_a_reader_of_stderr_that_left_does_not_stop_the_work() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    out = make()
    out.stderr = Gone()
    out.note("x")
    out.line("fox.png")
    assert isinstance(out.stdout, io.StringIO)
    assert out.stdout.getvalue() == "fox.png\n"


def test_output_takes_the_streams_of_its_moment() -> None:
    assert Output().stdout is sys.stdout
