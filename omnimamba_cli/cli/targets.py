"""Where results are written: names from templates, checks before any work, whole files or none.

A file appears under its name complete or not at all, and replaces another only with --force.
"""

import errno
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import get_args

from omnimamba_cli.cli.inputs import Wish
from omnimamba_cli.cli.options import FormatChoice
from omnimamba_cli.errors import InputError, UsageError, file_reason, nearest

FORMATS: dict[str, FormatChoice] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
LONGEST_NAME = 255  # bytes, on the file systems in use
# errors of os.link on a file system without hard links
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES, errno.EXDEV}


@dataclass(frozen=True)
class Target:
    """One picture to be drawn and the file it goes to; path None is stdout."""

    prompt: str
    seed: int
    path: Path | None
    format: FormatChoice


def slug(prompt: str) -> str:
    """A short file name for a prompt: its words in lower case, joined by "-"."""
    words = "-".join(re.findall(r"\w+", prompt.lower()))
    short = words.encode()[:80].decode("utf-8", "ignore")
    return short.strip("-_") or "picture"


def plan(
    wishes: Iterable[Wish | InputError],
    count: int,
    seed: int,
    output: str | None,
    format_choice: FormatChoice | None,
) -> Iterator[Target | InputError]:
    """Every picture of a run in order, with its path and its seed (its own, or the first one's plus its index).

    What cannot be drawn or named is an InputError in its place. Raises UsageError at once for an impossible template,
    suffix or number of pictures.
    """
    coming = iter(wishes)
    first = list(islice(coming, 2))
    several = count > 1 or len(first) > 1
    if output == "-":
        if several:
            raise UsageError("-o - takes one picture, here are more", hint="give a folder: -o pictures/")
        wish = first[0] if first else InputError("there is nothing to draw")
        if isinstance(wish, InputError):
            return iter([wish])
        return iter([Target(wish.prompt, seed if wish.seed is None else wish.seed, None, format_choice or "png")])
    template = _template(output, format_choice)
    if several:
        template = _numbered(template)
    _named(Wish("a"), template, seed, 0, format_choice)  # before any work: fields and format
    return _each(chain(first, coming), count, seed, template, format_choice)


def _each(
    wishes: Iterable[Wish | InputError], count: int, seed: int, template: str, format_choice: FormatChoice | None
) -> Iterator[Target | InputError]:
    for number, wish in enumerate(wishes):
        if isinstance(wish, InputError):
            yield wish
            continue
        if wish.output == "-":
            yield InputError('"output" is "-", but stdout is for the paths of the pictures', hint='"output": "fox.png"')
            continue
        own = wish.output if count == 1 or wish.output is None else _numbered(wish.output)
        for copy in range(count):
            index = number * count + copy
            at = seed + index if wish.seed is None else wish.seed + copy
            n = index if wish.output is None else copy
            try:
                yield _named(wish, own or template, at, n, format_choice)
            except UsageError as error:  # of its own output alone: the template was tried before
                yield InputError(error.message, hint=error.hint)


def _numbered(template: str) -> str:
    if re.search(r"\{(n|seed)\}", template):
        return template
    head, dot, suffix = template.rpartition(".") if Path(template).suffix else (template, "", "")
    return f"{head}-{{n}}{dot}{suffix}"


def _named(wish: Wish, template: str, seed: int, index: int, format_choice: FormatChoice | None) -> Target:
    short = slug(wish.prompt)
    # stem is prompt-slug by a shorter name
    values = {"prompt-slug": short, "stem": short, "seed": str(seed), "n": str(index + 1)}
    path = Path(fill(template, values))
    return Target(wish.prompt, seed, path, _format_of(path, format_choice))


def _template(output: str | None, format_choice: FormatChoice | None) -> str:
    suffix = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}[format_choice or "png"]
    if output is None:
        return f"{{prompt-slug}}{suffix}"
    if output == "":
        raise UsageError("--output is empty", hint="-o fox.png, -o pictures/ or -o - for stdout")
    if output.endswith(("/", os.sep)) or os.path.isdir(output):
        return os.path.join(output, f"{{prompt-slug}}{suffix}")
    return output


def fill(template: str, values: dict[str, str]) -> str:
    """A name with its {fields} filled in. Raises UsageError for a field that there is not."""

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in values:
            raise UsageError(
                f"--output has no field {{{name}}}; fields are {', '.join(f'{{{f}}}' for f in values)}",
                hint=nearest(f"{{{name}}}", [f"{{{field}}}" for field in values]),
            )
        return values[name]

    return re.sub(r"\{([^{}]*)\}", value, template)


def _format_of(path: Path, choice: FormatChoice | None) -> FormatChoice:
    suffix = path.suffix.lower()
    if suffix in FORMATS:
        if choice is not None and FORMATS[suffix] != choice:
            raise UsageError(f"--format {choice} contradicts the name {path.name}", hint=f"leave --format {choice} out")
        return FORMATS[suffix]
    if choice is not None or not suffix:
        return choice or "png"
    raise UsageError(
        f"{path}: pictures are not written as {suffix}; formats are {', '.join(get_args(FormatChoice))}",
        hint=f"-o {path.with_suffix('.png')}",
    )


def check(path: Path, force: bool) -> None:
    """Raises InputError unless `path` can be written: its folder is there and writable, it does not exist."""
    folder = path.parent
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise InputError(f"{path.name[:40]}...: the file name is longer than {LONGEST_NAME} bytes")
    if not folder.is_dir():
        if os.path.lexists(folder):
            raise InputError(f"{path}: {folder} is no folder")
        raise InputError(f"{path}: there is no folder {folder}", hint=f"mkdir -p {folder}")
    check_free(path, force)
    try:
        with tempfile.TemporaryFile(dir=folder):  # asks the file system itself: permissions are not all of it
            pass
    except OSError as error:
        raise InputError(f"{path}: cannot write into {folder} ({file_reason(error)})") from None


def check_free(path: Path, force: bool) -> None:
    """Raises InputError for a path that exists, unless it is a file and `force` is set."""
    if not os.path.lexists(path):
        return
    if path.is_dir():
        raise InputError(f"{path}: is a folder", hint=f"write into it: -o {path}/")
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        raise InputError(f"{path}: is no regular file", hint="-o - writes to stdout")
    if not force:
        raise _exists(path)


def _exists(path: Path) -> InputError:
    return InputError(f"{path}: exists and is not overwritten", hint="use --force, or another name")


def write_whole(path: Path, data: bytes, force: bool) -> None:
    """Writes a file that appears complete or not at all.

    Without `force`, a file that exists by then is kept, and InputError raised.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".omnimamba-", suffix=".partial")
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())
            if force:
                os.replace(temporary, path)
            else:
                _place_new(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:  # by the name that the user knows
        raise OSError(error.errno, error.strerror, str(path)) from error


def _place_new(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)  # fails when the name is taken: check and placing are one step
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            raise _exists(path) from None
        os.replace(temporary, path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
