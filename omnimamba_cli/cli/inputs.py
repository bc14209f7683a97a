"""What the user named: pictures, questions, prompts, folders, lists of them, and "-" for stdin.

Stdin is read only where "-" was written. Names are yielded one at a time, as they come; their files are read later.
What cannot be used is yielded as an InputError in its place, so that the others go on.
"""

import glob
import os
import select
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from omnimamba_cli.cli.lists import entries, fields_of, integer, text_of
from omnimamba_cli.errors import InputError, UsageError, file_reason

IMAGE_SUFFIXES = frozenset(
    ".png .jpg .jpeg .jpe .jfif .webp .gif .bmp .tif .tiff .ppm .pgm .avif .heic .heif .ico .jp2 .tga .svg".split()
)
PIPE_S = 30.0  # how long to wait until someone writes into a pipe; as long as for a web server
MOST_BYTES = 1 << 30  # of one picture file; also stops reading what has no end, such as /dev/zero
T = TypeVar("T")


@dataclass(frozen=True)
class Picture:
    """One picture to look at: `name` as the user wrote it, "-" for stdin. A JSON line may set the other fields."""

    name: str
    question: str | None = None
    seed: int | None = None
    output: str | None = None
    from_web: bool = False  # its name is an address that may be fetched

    def source(self) -> Path | bytes:
        """The path, or the bytes of stdin or of a web address. Raises InputError where there is nothing."""
        if self.name == "-":
            data = sys.stdin.buffer.read(MOST_BYTES + 1) if sys.stdin is not None else b""  # <&-
            if not data:
                raise InputError("-: stdin is empty; it should hold a picture")
            return data
        if self.from_web:
            from omnimamba_cli.engine.web_pictures import fetch

            return fetch(self.name)
        if "\0" in self.name:
            raise InputError(f"{self.name}: no such file")
        try:
            mode = os.stat(self.name).st_mode
        except (FileNotFoundError, NotADirectoryError):
            gone = os.path.islink(self.name)
            raise InputError(f"{self.name}: {'is a link to a file that is gone' if gone else 'no such file'}") from None
        except OSError as error:  # a folder that may not be entered, links in a circle
            raise InputError(f"{self.name}: cannot be read ({file_reason(error)})") from None
        if stat.S_ISDIR(mode):
            hint = f"--recursive takes the pictures in it, or name them: {self.name.rstrip('/')}/*"
            raise InputError(f"{self.name}: is a folder", hint=hint)
        return Path(self.name)

    def data(self) -> bytes:
        """All bytes of the file, of stdin or of a web address. Raises InputError, by name."""
        source = self.source()
        try:
            if isinstance(source, bytes):
                data = source
            elif stat.S_ISFIFO(source.stat().st_mode):
                data = _through_pipe(source)
            else:
                with source.open("rb") as file:
                    data = file.read(MOST_BYTES + 1)
        except OSError as error:
            raise InputError(f"{self.name}: cannot be read ({file_reason(error)})") from None
        if not data:
            raise InputError(f"{self.name}: is empty")
        if len(data) > MOST_BYTES:
            raise InputError(f"{self.name}: is larger than the {MOST_BYTES >> 20:,} MiB that are read")
        return data


def _through_pipe(path: Path) -> bytes:
    """All that is written into a named pipe or by `<(...)`. Raises InputError when for PIPE_S nobody opens it to write.

    Opened as any file, a pipe that nobody writes to would hold up the whole run for ever.
    """
    parts: list[bytes] = []
    size = 0
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        ready = select.poll()
        ready.register(handle, select.POLLIN)
        while size <= MOST_BYTES:
            came = ready.poll(PIPE_S * 1000)
            try:
                part = os.read(handle, 1 << 20)
            except BlockingIOError:  # someone has it open, but has written nothing yet
                continue
            if not part and not came:
                raise InputError(f"{path}: is a pipe that nobody writes into, for {PIPE_S:g} s")
            if not part:
                break
            parts.append(part)
            size += len(part)
    finally:
        os.close(handle)
    return b"".join(parts)


def split_question(
    arguments: Sequence[str], prompt: str | None, *, listed: bool = False
) -> tuple[list[Picture], str | None]:
    """Split `IMAGE... [QUESTION]`.

    With a prompt option every argument is a picture. Else the last of two or more arguments (of one or more, where a
    list names pictures) is the question, unless it is "-", an existing file, or ends like a picture ("b.png" is then a
    missing file).
    """
    names = list(arguments)
    refuse_stdin_twice(*(n == "-" for n in names))
    if prompt is not None:
        return [Picture(n) for n in names], clean_text(prompt)
    if len(names) < (1 if listed else 2) or _means_file(names[-1]):
        return [Picture(n) for n in names], None
    return [Picture(n) for n in names[:-1]], clean_text(names[-1])


def means_several(picture: Picture, recursive: bool) -> bool:
    """Whether a name stands for several pictures: a folder, or a pattern that the shell did not expand."""
    name = picture.name
    if "\0" in name or is_url(name):
        return False
    return (recursive and os.path.isdir(name)) or (glob.has_magic(name) and not os.path.lexists(name))


def _means_file(text: str) -> bool:
    if text == "-" or is_url(text) or os.path.splitext(text)[1].lower() in IMAGE_SUFFIXES:
        return True
    return "\0" not in text and os.path.exists(text) and not os.path.isdir(text)


def is_url(name: str) -> bool:
    """Whether a name is a web address and no file."""
    return name.lower().startswith(("http://", "https://")) and not os.path.lexists(name)


def clean_text(text: str) -> str:
    """The text without what no tokenizer takes: bytes that are no UTF-8, and lone surrogates.

    In the C locale Python keeps UTF-8 arguments as surrogate escapes; they are decoded here.
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode("utf-8")


def expanded(
    pictures: Sequence[Picture], from_file: str | None, *, nul: bool, recursive: bool, allow_urls: bool
) -> Iterator[Picture | InputError]:
    """The named pictures, then those of a list. Folders and patterns are expanded, web addresses allowed or refused.

    Raises InputError at once where the list itself is missing.
    """
    listed: Iterator[Picture | InputError] = iter(())
    if from_file is not None:
        listed = _listed(from_file, nul)
        if not pictures:
            listed = _or_none(listed, from_file, "picture")

    def found() -> Iterator[Picture | InputError]:
        for given in (iter(pictures), listed):
            for picture in given:
                if isinstance(picture, InputError):
                    yield picture
                else:
                    yield from _files(picture, recursive=recursive, allow_urls=allow_urls)

    return found()


def _listed(name: str, nul: bool) -> Iterator[Picture | InputError]:
    lines = entries(name, nul)

    def found() -> Iterator[Picture | InputError]:
        for where, line in lines:
            try:
                fields = None if nul else fields_of(line, where)
                if fields is None:
                    yield Picture(line)
                    continue
                image = text_of(fields, "image", where)
                if not image:
                    raise InputError(f'{where}: has no "image"', hint='{"image": "fox.png", "question": "how many?"}')
                question = text_of(fields, "question", where) or text_of(fields, "prompt", where)
                yield Picture(
                    image,
                    None if question is None else clean_text(question),
                    integer(fields, "seed", where),
                    text_of(fields, "output", where),
                )
            except InputError as error:
                yield error

    return found()


def _files(picture: Picture, *, recursive: bool, allow_urls: bool) -> Iterator[Picture | InputError]:
    """The picture itself; the pictures in a folder, or those that a quoted pattern names."""
    name = picture.name

    def each(names: Iterator[str]) -> Iterator[Picture]:
        for one in names:
            yield Picture(one, picture.question, picture.seed, picture.output)

    if is_url(name):
        if allow_urls:
            yield Picture(name, picture.question, picture.seed, picture.output, from_web=True)
        else:
            yield InputError(
                f"{name}: a web address is not fetched", hint="--allow-urls, or curl ... | omnimamba ... -"
            )
        return
    if "\0" not in name and os.path.isdir(name) and recursive:
        count = 0
        for count, one in enumerate(each(_walk(name)), 1):  # noqa: B007  # the count is looked at afterwards
            yield one
        if not count:
            yield InputError(f"{name}: holds no picture", hint="known by their suffix: .png, .jpg, .webp, ...")
        return
    if glob.has_magic(name) and "\0" not in name and not os.path.lexists(name):
        if matching := sorted(glob.glob(name, recursive=True)):
            yield from each(iter(matching))
            return
        yield InputError(f"{name}: no such file, and no file of this pattern")
        return
    yield picture


def _walk(folder: str) -> Iterator[str]:
    """Pictures below a folder by suffix, sorted in each folder; without hidden files, pipes and linked folders."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(names):
            path = os.path.join(parent, name)
            if (
                os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
                and not name.startswith(".")
                and not _is_special(path)
            ):
                yield path


def _is_special(path: str) -> bool:
    """Whether a path is a pipe, a socket or a device; False if it is gone."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def read_list(name: str, nul: bool = False) -> list[str]:
    """All entries of a list file, or of stdin for "-": one a line, blank lines left out, or NUL-separated."""
    return [entry for _, entry in entries(name, nul)]


def _or_none(found: Iterable[T | InputError], name: str, what: str) -> Iterator[T | InputError]:
    """The entries of a list, or an InputError if it has none: mostly the command that writes the pipe has failed."""
    empty = True
    for item in found:
        empty = False
        yield item
    if empty:
        yield InputError(f"{'stdin' if name == '-' else name}: holds no {what}; write one a line")


def refuse_stdin_twice(*uses: bool) -> None:
    """Raises UsageError when more than one input asks for stdin."""
    if sum(uses) > 1:
        raise UsageError("stdin is asked for twice", hint="write - once")


@dataclass(frozen=True)
class Wish:
    """One prompt to draw, with the seed and file of its JSON line, if any."""

    prompt: str
    seed: int | None = None
    output: str | None = None


def wishes(argument: str | None, from_file: str | None, nul: bool) -> Iterator[Wish | InputError]:
    """The prompts to draw: the argument ("-" reads stdin, one a line), then those of --from, as they come.

    Raises UsageError where nothing was named, InputError at once where a list is not there.
    """
    refuse_stdin_twice(argument == "-", from_file == "-")
    if argument is None and from_file is None:
        raise UsageError("there is nothing to draw", hint='omnimamba generate "a red fox"')
    named = [Wish(clean_text(argument))] if argument not in (None, "-") else []
    names = [name for name in ("-" if argument == "-" else None, from_file) if name is not None]
    lists = [(name, entries(name, nul)) for name in names]

    def found() -> Iterator[Wish | InputError]:
        yield from named
        for name, lines in lists:
            wanted = (_wish(line, where, nul) for where, line in lines)
            yield from wanted if named else _or_none(wanted, name, "prompt")

    return found()


def _wish(line: str, where: str, nul: bool) -> Wish | InputError:
    try:
        fields = None if nul else fields_of(line, where)
        if fields is None:
            return Wish(clean_text(line))
        prompt = text_of(fields, "prompt", where)
        if prompt is None:
            raise InputError(
                f'{where}: has no "prompt"', hint='{"prompt": "a red fox", "seed": 7, "output": "fox.png"}'
            )
        return Wish(clean_text(prompt), integer(fields, "seed", where), text_of(fields, "output", where))
    except InputError as error:
        return error
