"""One process at a time writes an output: two would mix their lines. A file lock, which a killed process releases."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from omnimamba_cli.errors import InputError, file_reason


@contextmanager
def alone(lock: Path, output: Path) -> Iterator[None]:
    """Hold the file `lock` while the block runs, and remove it; `output` is what errors call it.

    Raises InputError where another process holds it, or it cannot be written.
    """
    try:
        file = lock.open("a")
    except OSError as error:
        raise InputError(f"{output} cannot be written: {file_reason(error)}") from None
    with file:
        if not _acquired(file):
            raise InputError(f"another process is writing {output}", hint="wait for it, or stop it and run this again")
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _acquired(file: TextIO) -> bool:
    """Whether this process now has the lock. Always true where there are no such locks (some disks, Windows)."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        # not flock: worker processes would inherit it, and they outlive a killed run by seconds
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True
