"""Shows pictures on the terminal while they are drawn and when they are done; on stderr, as all remarks."""

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
SKETCH_S = 0.5  # least time between two sketches: each takes as long as a few codes


class Screen:
    """Shows pictures on stderr, if that is a terminal."""

    def __init__(self, out: Output) -> None:
        self.out = out
        self._sketch_rows = 0  # of the unfinished picture that stands above the cursor

    @cached_property
    def way(self) -> preview.Way | None:
        """How pictures are shown, None: not at all. Asks the terminal, so nothing else may write to it meanwhile."""
        if self.out.quiet or not self.out.stderr.isatty():
            return None
        way = terminal.best_way(self.out.stderr, os.environ, colour=wants_color(self.out.color, self.out.stderr))
        self.out.detail(f"pictures are shown as {way}")
        return way

    def begin(self) -> None:
        """Begin a new drawing below whatever is shown, such as a drawing that was stopped half-way."""
        self._sketch_rows = 0

    def show(self, picture: "Image") -> None:
        """Show a finished picture in place of its sketch."""
        if self.way is not None:
            self.out.note((self._erase() + self._rendered(picture)).removesuffix("\n"))

    def sketch(self, picture: "Image") -> None:
        """Show an unfinished picture in place of the sketch before it."""
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
    """The screen for --show; None, with a remark, where there is none."""
    found = Screen(out)
    if found.way is None:
        out.note("--show: stderr is no terminal, so nothing is shown")
        return None
    return found


def follow(bar: Bar, screen: Screen | None) -> "Callable[[DrawingEvent], None]":
    """A watcher of drawings that moves the bar by parts of pictures, and sketches the first picture of a batch."""
    if screen is not None:
        screen.begin()
    last_index = last_done = 0  # of the event before: first picture of the batch, codes of each
    next_sketch_at = 0.0

    def watch(event: "DrawingEvent") -> None:
        nonlocal last_index, last_done, next_sketch_at
        same_batch = event.index == last_index and event.done > last_done
        new = event.done - (last_done if same_batch else 0)
        last_index, last_done = event.index, event.done
        detail = f"{event.done} of {event.codes} codes"
        bar.advance(event.pictures * new / event.codes, detail if event.done < event.codes else "")
        if screen is not None and event.done < event.codes and time.monotonic() >= next_sketch_at:
            screen.sketch(event.preview())
            next_sketch_at = time.monotonic() + SKETCH_S

    return watch
