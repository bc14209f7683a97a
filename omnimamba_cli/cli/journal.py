"""`--append FILE.jsonl`: results as JSON lines in a file; when the command runs again, it skips what the file holds.

A line is written whole, by one writer at a time; half a line that a killed run left is removed. A result is known by
its key (a picture and its question, a prompt and its seed); what stands there n times is skipped n times.
"""

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from omnimamba_cli.cli.output import json_line
from omnimamba_cli.errors import InputError, file_reason
from omnimamba_cli.json_text import parse

Key = tuple[object, ...]
Record = Mapping[str, Any]  # Any: a JSON object


class Journal:
    """The file, open and locked until `close`; use it as a context manager.

    `key_of` gives the key of a record; it raises KeyError for one of another kind.
    """

    def __init__(self, path: Path, key_of: Callable[[Record], Key]) -> None:
        self.path = path
        self.last: Record | None = None  # the last record that was there
        self.count = 0  # how many were there
        self._done: Counter[bytes] = Counter()
        try:
            self._file: BinaryIO = open(path, "a+b", buffering=0)  # noqa: SIM115  # kept open
        except OSError as error:
            hint = f"mkdir -p {path.parent}" if not path.parent.exists() else None
            raise InputError(f"{path}: cannot be opened ({file_reason(error)})", hint=hint) from None
        try:
            if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
                raise InputError(f"{path}: is no regular file, so it cannot be gone on with")
            self._lock()
            self._read(key_of)
        except BaseException:
            self._file.close()
            raise

    def holds(self, key: Key) -> bool:
        """Whether a result is there, and take it: what is asked twice must be there twice."""
        digest = _digest(key)
        if self._done[digest] == 0:
            return False
        self._done[digest] -= 1
        return True

    def add(self, fields: Mapping[str, object]) -> None:
        """Append a record, whole or not at all."""
        data = memoryview((json_line(fields) + "\n").encode("utf-8"))
        end = os.fstat(self._file.fileno()).st_size
        try:
            while data:
                data = data[self._file.write(data) :]
        except BaseException as error:
            os.ftruncate(self._file.fileno(), end)  # a full disk takes a part of a line
            if isinstance(error, OSError):
                raise OSError(error.errno, error.strerror, str(self.path)) from None
            raise

    def close(self) -> None:
        """Sync the file to the disk and release its lock."""
        with self._file:
            os.fsync(self._file.fileno())

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows has no such locks
            return
        try:
            fcntl.flock(self._file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{self.path}: another command is appending to it", hint="wait for it, or give each a file of its own"
            ) from None
        except OSError:  # a file system without locks
            return

    def _read(self, key_of: Callable[[Record], Key]) -> None:
        self._file.seek(0)
        good = 0
        for number, line in enumerate(_lines(self._file), 1):
            try:
                record = parse(line)
                self._done[_digest(key_of(record))] += 1
            except (ValueError, KeyError, TypeError, AttributeError):
                # only a last line without its end can be half of ours, and it begins like all of ours
                if line.endswith(b"\n") or not b'{"schema":'.startswith(line[:10]):
                    raise InputError(
                        f"{self.path}: line {number} is no result of this command, so nothing is appended",
                        hint="give another file",
                    ) from None
                os.ftruncate(self._file.fileno(), good)
                return
            self.last = record
            self.count = number
            good += len(line)
            if not line.endswith(b"\n"):
                self._file.write(b"\n")  # a whole record that lacks only its line end


def _lines(file: BinaryIO) -> Iterable[bytes]:
    rest = b""
    while chunk := file.read(1 << 20):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line + b"\n"
    if rest:
        yield rest


def _digest(key: Key) -> bytes:
    return blake2b(repr(key).encode("utf-8", "surrogatepass"), digest_size=16).digest()
