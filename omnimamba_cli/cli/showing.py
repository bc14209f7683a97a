"""Pictures on the terminal while they are drawn and when they are done: for people, so on stderr."""

import os
import time
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

from omnimamba_cli.cli import preview, terminal
from omnimamba_cli.cli.output import Bar, Output, wants_color

if TYPE_CHECKING:
    from PIL.Image import Image

    from omnimamba_cli.engine.events import DrawingEvent

MOST_ROWS = 32  # of text, for one picture
SKETCH_S = 0.5  # between two sketches: each takes the work of a few codes


class Screen:
    """Shows pictures on stderr; on none where that is no terminal."""

    def __init__(self, out: Output) -> None:
        self.out = out
        self._sketch_rows = 0  # of the unfinished picture that stands above the cursor

    @cached_property
    def way(self) -> preview.Way | None:
        """How pictures are shown; the first time the terminal is asked, so not while something else talks to it."""
        if self.out.quiet or not self.out.stderr.isatty():
            return None
        way = terminal.best_way(self.out.stderr, os.environ, colour=wants_color(self.out.color, self.out.stderr))
        self.out.detail(f"pictures are shown as {way}")
        return way

    def begin(self) -> None:
        """A drawing that was stopped half-way stays where it is: the next one begins below."""
        self._sketch_rows = 0

    def show(self, picture: "Image") -> None:
        """A finished picture, in the place of the unfinished one."""
        if self.way is not None:
            self.out.note((self._erase() + self._rendered(picture)).removesuffix("\n"))

    def sketch(self, picture: "Image") -> None:
        """An unfinished picture, in the place of the one before it."""
        if self.way not in ("truecolor", "256", "letters") or os.environ.get("TERM", "dumb") == "dumb":
            return  # graphics cannot be taken back everywhere, and dumb terminals take nothing back
        text = self._erase() + self._rendered(picture)
        self._sketch_rows = text.count("\n")
        self.out.note(text.removesuffix("\n"))

    def _rendered(self, picture: "Image") -> str:
        assert self.way is not None
        try:
            columns, lines = os.get_terminal_size(self.out.stderr.fileno())
        except OSError:
            columns, lines = 0, 0
        # a terminal that does not know its size says 0
        return preview.rendered(picture, self.way, (columns or 80) - 1, max(4, min(MOST_ROWS, (lines or 24) - 3)))

    def _erase(self) -> str:
        rows, self._sketch_rows = self._sketch_rows, 0
        return f"\x1b[{rows}A\r\x1b[J" if rows else ""


def screen(out: Output) -> Screen | None:
    """The screen that --show asks for, or a remark that there is none."""
    found = Screen(out)
    if found.way is None:
        out.note("--show: stderr is no terminal, so nothing is shown")
        return None
    return found


def follow(bar: Bar, screen: Screen | None) -> "Callable[[DrawingEvent], None]":
    """What moves a bar of pictures by parts of them, and shows the first of a batch where there is a screen."""
    if screen is not None:
        screen.begin()
    last, due = [0, 0], [0.0]  # first picture of the batch and codes of each; when a sketch is worth its work again

    def told(event: "DrawingEvent") -> None:
        same = event.index == last[0] and event.done > last[1]
        done = event.done - (last[1] if same else 0)
        last[:] = event.index, event.done
        detail = f"{event.done} of {event.codes} codes"
        bar.advance(event.pictures * done / event.codes, detail if event.done < event.codes else "")
        if screen is not None and event.done < event.codes and time.monotonic() >= due[0]:
            screen.sketch(event.preview())
            due[0] = time.monotonic() + SKETCH_S

    return told
