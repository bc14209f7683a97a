"""What the user named: pictures, questions, prompts, lists of them, and "-" for stdin.

Stdin is read only where "-" was written. Checks that something is there; does not decode it.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omnimamba_cli.errors import InputError, UsageError

IMAGE_SUFFIXES = frozenset(
    ".png .jpg .jpeg .jpe .jfif .webp .gif .bmp .tif .tiff .ppm .pgm .avif .heic .heif .ico .jp2 .tga .svg".split()
)


@dataclass(frozen=True)
class Picture:
    """One picture to look at: `name` as the user wrote it, "-" for stdin."""

    name: str

    def source(self) -> Path | bytes:
        """The path, or stdin's bytes. Raises InputError for what is not there."""
        if self.name == "-":
            data = sys.stdin.buffer.read()
            if not data:
                raise InputError("-: stdin is empty; it should hold a picture")
            return data
        if "\0" in self.name or not os.path.lexists(self.name):
            raise InputError(f"{self.name}: no such file")
        if os.path.isdir(self.name):
            raise InputError(f"{self.name}: is a folder", hint=f"name its pictures: {self.name.rstrip('/')}/*")
        if not os.path.exists(self.name):
            raise InputError(f"{self.name}: is a link to a file that is gone")
        return Path(self.name)


def split_question(arguments: Sequence[str], prompt: str | None) -> tuple[list[Picture], str | None]:
    """`IMAGE... [QUESTION]` told apart.

    With a prompt option every argument is a picture. Else the last of two or more is the question, unless
    it is "-", names an existing file, or ends like one ("b.png" is then a file that is missing).
    """
    names = list(arguments)
    refuse_stdin_twice(*(n == "-" for n in names))
    if prompt is not None:
        return [Picture(n) for n in names], clean_text(prompt)
    if len(names) < 2 or _means_file(names[-1]):
        return [Picture(n) for n in names], None
    return [Picture(n) for n in names[:-1]], clean_text(names[-1])


def _means_file(text: str) -> bool:
    if text == "-" or os.path.splitext(text)[1].lower() in IMAGE_SUFFIXES:
        return True
    return "\0" not in text and os.path.exists(text) and not os.path.isdir(text)


def clean_text(text: str) -> str:
    """The text with bytes that are no UTF-8 shown as "?", since no tokenizer takes them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def read_list(name: str, nul: bool = False) -> list[str]:
    """The entries of a list file, or of stdin for "-": one a line, blank lines left out, or NUL-separated."""
    if name == "-":
        data = sys.stdin.buffer.read()
    else:
        try:
            data = Path(name).read_bytes()
        except OSError as error:
            raise InputError(f"{name}: {(error.strerror or 'cannot be read').lower()}") from None
    entries = os.fsdecode(data).split("\0") if nul else os.fsdecode(data).splitlines()
    return [e for e in entries if e.strip()]


def refuse_stdin_twice(*uses: bool) -> None:
    """Raises UsageError when more than one input asks for stdin."""
    if sum(uses) > 1:
        raise UsageError("stdin is asked for twice", hint="write - once")


def prompts(argument: str | None, from_file: str | None, nul: bool) -> list[str]:
    """The prompts to draw: the argument ("-" reads stdin, one a line), then those of --from."""
    refuse_stdin_twice(argument == "-", from_file == "-")
    found: list[str] = []
    if argument == "-":
        found += read_list("-", nul)
    elif argument is not None:
        found.append(argument)
    if from_file is not None:
        found += read_list(from_file, nul)
    if not found:
        where = "stdin" if "-" in (argument, from_file) else from_file
        if where is None:
            raise UsageError("there is nothing to draw", hint='omnimamba generate "a red fox"')
        raise InputError(f"{where}: holds no prompt; write one a line")
    return [clean_text(p) for p in found]
