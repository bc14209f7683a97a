"""Lines from stdin: typed at a terminal, with editing, history and completion, or from a pipe."""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from glob import escape, glob
from pathlib import Path
from types import ModuleType

from omnimamba_cli.cli.output import Output
from omnimamba_cli.folders import user_folder

MOST_KEPT = 1000  # lines of history


def history_file() -> Path:
    """Where typed lines are remembered."""
    return user_folder("state") / "history"


class Keyboard:
    """Stdin, line by line. Completes `commands` at the start of a line, and file names after one."""

    def __init__(self, out: Output, commands: Sequence[str], *, history: Path | None) -> None:
        self.out = out
        self.is_terminal = sys.stdin.isatty()
        self._prompts = self.is_terminal and out.stdout.isatty()  # else prompts would mix with the answers
        self._commands = commands
        self._history = history
        self._readline = self._edited() if self._prompts else None

    def line(self) -> str | None:
        """The next line without its end; None when there is no more."""
        if self._prompts:
            try:
                return self.out.ask("> ")
            except EOFError:
                self.out.line("")
                return None
            except KeyboardInterrupt:  # gives up the line, not the program
                self.out.line("")
                return ""
        read = sys.stdin.buffer.readline()
        return os.fsdecode(read).rstrip("\r\n") if read else None

    def close(self) -> None:
        """Save the history; a file that cannot be written is ignored."""
        if self._readline is None or self._history is None:
            return
        with suppress(OSError):
            self._history.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._readline.set_history_length(MOST_KEPT)
            self._readline.write_history_file(str(self._history))

    def _edited(self) -> ModuleType | None:
        try:
            import readline
        except ImportError:  # Windows: its console edits by itself
            return None
        if self._history is not None:
            with suppress(OSError):
                readline.read_history_file(str(self._history))
        readline.set_completer_delims("")  # a line is completed as a whole: names of files may have spaces
        readline.set_completer(self._completion)
        readline.parse_and_bind("tab: complete")
        return readline

    def _completion(self, line: str, state: int) -> str | None:
        found = self.completions(line)
        return found[state] if state < len(found) else None

    def completions(self, line: str) -> list[str]:
        """How a line can be completed: as a command, or after one, with a path."""
        command, space, start = line.partition(" ")
        if not line.startswith("/"):
            return []
        if not space:
            return [f"{name} " for name in self._commands if name.startswith(command)]
        paths = glob(escape(os.path.expanduser(start)) + "*")
        return sorted(f"{command} {path}{os.sep if os.path.isdir(path) else ''}" for path in paths)
