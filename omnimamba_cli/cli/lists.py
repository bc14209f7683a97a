"""Lists of inputs, read entry by entry: lines, NUL-separated names, JSON objects.

An entry that begins with "{" is a JSON object; in a NUL-separated list entries are always plain.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from omnimamba_cli.errors import InputError, file_reason
from omnimamba_cli.json_text import parse

CHUNK = 1 << 16
LONGEST = 1 << 20  # bytes of an entry; a file with a longer one is no list
LARGEST_SEED = 2**53 - 1  # the largest integer that every JSON reader keeps exactly


def entries(name: str, nul: bool = False) -> Iterator[tuple[str, str]]:
    """(where, entry) of a list file, or of stdin for "-"; blank entries are left out.

    `where` is the file and the line, for errors. Raises InputError at once for a missing file, and later for an entry
    that is too long to be a name or a prompt.
    """
    if name == "-":
        if sys.stdin is None:  # <&-
            raise InputError("stdin is closed, so there is no list")
        # not the buffered stream: a thread that waits in it would hold its lock while the program ends
        stream = getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)
    else:
        try:
            stream = Path(name).open("rb", buffering=0)  # noqa: SIM115  # closed when it is read
        except (OSError, ValueError) as error:
            raise InputError(f"{name}: {(getattr(error, 'strerror', None) or 'no such file').lower()}") from None
    shown = "stdin" if name == "-" else name

    def found() -> Iterator[tuple[str, str]]:
        for number, entry in enumerate(_split(stream.read, b"\0" if nul else b"\n", shown), 1):
            text = os.fsdecode(entry if nul else entry.removesuffix(b"\r"))
            if "\0" in text:  # never in a name or a prompt
                hint = "-0, if its entries end with NUL; a picture is named without --from"
                raise InputError(f"{shown}, line {number}: holds NUL bytes, so this is no list of lines", hint=hint)
            if number == 1:
                text = text.removeprefix("\ufeff")
            if text.strip():
                yield f"{shown}, {'entry' if nul else 'line'} {number}", text
        if name != "-":
            stream.close()

    return found()


def _split(read: Callable[[int], bytes | None], separator: bytes, shown: str) -> Iterator[bytes]:
    rest = b""
    while True:
        try:
            chunk = read(CHUNK)
        except OSError as error:
            raise InputError(f"{shown}: {file_reason(error)}") from None
        if not chunk:
            break
        *whole, rest = (rest + chunk).split(separator)
        yield from whole
        if len(rest) > LONGEST:
            raise InputError(f"{shown}: an entry is longer than {LONGEST:,} bytes; is this a list?")
    if rest:
        yield rest


Fields = dict[str, Any]  # Any: a JSON object


def fields_of(entry: str, where: str) -> Fields | None:
    """The JSON object of an entry; None for a plain name or prompt. Unknown keys are ignored.

    Raises InputError for an entry that begins like an object, but is none.
    """
    if not entry.lstrip().startswith("{"):
        return None
    try:
        fields = parse(entry)
    except ValueError as error:
        raise InputError(f"{where}: is no JSON object ({error})") from None
    assert isinstance(fields, dict)
    return fields


def text_of(fields: Fields, key: str, where: str) -> str | None:
    """The text under a key, None without one. Raises InputError for anything else."""
    value = fields.get(key)
    if value is not None and not isinstance(value, str):
        raise InputError(f'{where}: "{key}" is {json.dumps(value)[:40]}; it must be a text')
    return value


def integer(fields: Fields, key: str, where: str) -> int | None:
    """The seed under a key, None without one. Raises InputError for anything else."""
    value = fields.get(key)
    if value is None:
        return None
    if type(value) is not int or not 0 <= value <= LARGEST_SEED:
        raise InputError(f'{where}: "{key}" is {json.dumps(value)[:40]}; it must be a whole number from 0 on')
    return value
