"""The only printer: results to stdout, remarks to stderr, progress on a terminal.

Model text is written as it is, never through Rich, which would eat "[red]" and wrap at 80 columns.
"""

import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TextIO

from omnimamba_cli.errors import ExitCode, InputError

if TYPE_CHECKING:
    from rich.progress import Progress

# control characters, which would break lines and columns or command a terminal -> their escapes, such as \n
CONTROLS = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160))}
SCHEMA = 1  # version of the JSON lines; while it stays the same, fields are only added
ColorChoice = Literal["auto", "always", "never"]


def use_utf8() -> None:
    """Makes both streams UTF-8 whatever the locale; undecodable file names pass through unchanged.

    Raises InputError for a stdout that was closed before the program began (`>&-`): its results would have no place.
    """
    if sys.stderr is None:  # 2>&-: nobody wants to hear anything
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # as long as the process
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # likewise
        raise InputError("stdout is closed, so results have no place", hint="> /dev/null throws them away")
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(encoding="utf-8", errors="surrogateescape")


def wants_color(choice: ColorChoice, stream: TextIO) -> bool:
    """--color, then NO_COLOR, then FORCE_COLOR, then whether the stream is a terminal."""
    if choice != "auto":
        return choice == "always"
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


class Bar:
    """Progress of one job. Draws nothing where the output has no terminal to draw on."""

    def __init__(self, rich_progress: "Progress | None" = None, label: str = "", total: float | None = None) -> None:
        self._progress = rich_progress
        self._task = rich_progress.add_task(label, total=total, detail="") if rich_progress else None

    @property
    def shown(self) -> bool:
        """Whether there is a terminal to draw on."""
        return self._progress is not None

    def advance(self, steps: float = 1, detail: str | None = None) -> None:
        """Moves on by `steps`; `detail` is a short text behind the bar, such as "loss 2.31"."""
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task, steps)
            if detail is not None:
                self._progress.update(self._task, detail=detail)


class Output:
    """Where a command writes. Options arrive with `configure`, after parsing."""

    def __init__(self) -> None:
        self.stdout, self.stderr = sys.stdout, sys.stderr
        self.quiet = False
        self.verbose = 0
        self.json = False
        self.color: ColorChoice = "auto"
        self._live: Progress | None = None

    def configure(self, *, quiet: bool, verbose: int, color: ColorChoice, json: bool = False) -> None:
        """Takes the common options."""
        self.quiet, self.verbose, self.color, self.json = quiet, verbose, color, json

    # stdout: results

    def piece(self, text: str) -> None:
        """A part of a result, shown at once, without a line end."""
        self._write(self.stdout, text)

    def line(self, text: str) -> None:
        """One result on its own line, flushed."""
        self._write(self.stdout, text + "\n")

    def record(self, fields: Mapping[str, object]) -> None:
        """One result as a JSON line with the schema number."""
        self.line(json_line(fields))

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Aligned columns: the first to the left, the rest (numbers) to the right; controls in names as \\n, \\t."""
        lines = [[printable(cell) for cell in row] for row in (headers, *rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for row in lines:
            cells = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
            self.line("  ".join(cells).rstrip())

    def binary(self, data: bytes) -> None:
        """Bytes such as a PNG. Refused on a terminal."""
        self.refuse_terminal()
        with self._guarded_stdout():
            self.stdout.buffer.write(data)
            self.stdout.buffer.flush()

    def refuse_terminal(self) -> None:
        """Raises InputError when stdout is a terminal, which picture bytes would garble."""
        if self.stdout.isatty():
            raise InputError(
                "stdout is a terminal; picture bytes would garble it",
                hint="add > fox.png, or write -o fox.png",
            )

    # stderr: remarks

    def note(self, text: str) -> None:
        """A remark; silent under -q."""
        if not self.quiet:
            self._write(self.stderr, text + "\n")

    def detail(self, text: str) -> None:
        """A remark for -v: device, dtype, kernels, timings."""
        if self.verbose >= 1:
            self._write(self.stderr, text + "\n")

    def error(self, message: str, hint: str | None = None) -> None:
        """`error: ...` and, where there is one, `hint: ...`; shown under -q too."""
        red, cyan, off = ("\x1b[31m", "\x1b[36m", "\x1b[0m") if wants_color(self.color, self.stderr) else ("", "", "")
        text = f"{red}error:{off} {_indented(message)}\n"
        if hint:
            text += f"{cyan}hint:{off} {_indented(hint)}\n"
        self._write(self.stderr, text)

    def traceback(self, error: BaseException) -> None:
        """Where an error came from, for -vv; values of variables are never shown."""
        if self.verbose >= 2:
            self._write(self.stderr, "".join(traceback.format_exception(error)))

    @contextmanager
    def progress(self, label: str, total: float | None = None) -> Iterator[Bar]:
        """A bar on stderr while the block runs, if stderr is a terminal and not under -q."""
        if self.quiet or self._live is not None or not self.stderr.isatty():
            yield Bar()
            return
        self._live = _rich_progress(self.stderr, colored=wants_color(self.color, self.stderr))
        try:
            with self._live:
                yield Bar(self._live, label, total)
        finally:
            self._live = None

    # the keyboard

    def ask(self, prompt: str) -> str:
        """A line typed at a terminal, edited by readline where that was imported. EOFError ends it."""
        return input(prompt)

    def _write(self, stream: TextIO, text: str) -> None:
        live = self._live
        if live is not None and stream.isatty():
            live.stop()  # erases the bar, so that the text does not run into it
        try:
            if stream is self.stdout:
                with self._guarded_stdout():
                    _write_text(stream, text)
            else:
                with self._unguarded_stderr():
                    _write_text(stream, text)
        finally:
            if live is not None and stream.isatty():
                live.start()

    @contextmanager
    def _unguarded_stderr(self) -> Iterator[None]:
        try:
            yield
        except OSError:  # nobody reads stderr any more, or its disk is full: the work goes on
            if self.stderr is sys.__stderr__:  # or the rest of its buffer would fail again when the process ends
                _silence(2)

    @contextmanager
    def _guarded_stdout(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            silence_stdout()
            raise SystemExit(ExitCode.CLOSED_PIPE) from None
        except OSError as error:  # a full disk
            silence_stdout()
            raise OSError(error.errno, error.strerror, "stdout") from None


def json_line(fields: Mapping[str, object]) -> str:
    """A JSON object with the schema number on one line, without its end."""
    data = {"schema": SCHEMA, **fields}
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    if any("\ud800" <= c <= "\udfff" for c in text):  # an undecodable file name: keep the line valid UTF-8
        text = json.dumps(data, separators=(",", ":"))
    return text


def silence_stdout() -> None:
    """Points stdout at nothing, so that Python's own flush at exit does not complain about a closed pipe."""
    _silence(1)


def printable(name: str) -> str:
    """A name as it can be printed in a line of columns, its control characters escaped: \\n, \\t, \\x1b."""
    return name.translate(CONTROLS)


def _silence(handle: int) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), handle)


def _write_text(stream: TextIO, text: str) -> None:
    try:
        stream.write(text)
    except UnicodeEncodeError:  # a lone surrogate that stands for no byte
        stream.write(text.encode("utf-8", "replace").decode("utf-8"))
    stream.flush()


def _indented(text: str) -> str:
    return "\n  ".join(printable(line) for line in text.strip().split("\n"))


def _rich_progress(stream: TextIO, colored: bool) -> "Progress":
    # imported here: only where a bar is really drawn is it worth its time
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns: list[Any] = [  # Any: column classes of Rich and plain strings mix
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
    ]
    console = Console(file=stream, no_color=not colored, force_terminal=True, highlight=False)
    return Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)
