"""The lock file of a downloaded model: where its files came from, and sizes and hashes of what the directory holds.

`check` compares sizes, which is quick, or with `hashes` every byte.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from omnimamba_cli import __version__
from omnimamba_cli.engine.checkpoint import CARD, LOCK
from omnimamba_cli.errors import CheckpointError
from omnimamba_cli.json_text import parse

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class SourceEntry:
    """A published file that went into the model."""

    key: str  # org/name/file of the published table
    commit: str | None  # None: a local file, of no known commit
    size_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """A file of the model directory."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Lock:
    """The contents of a lock file."""

    release: str
    sources: tuple[SourceEntry, ...]
    files: tuple[FileEntry, ...]

    @property
    def keys(self) -> set[str]:
        """The published files that are in the model."""
        return {source.key for source in self.sources}


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(directory: Path) -> Lock | None:
    """The lock of a model directory, None where it has none. Raises CheckpointError for one that is damaged."""
    path = directory / LOCK
    if not path.is_file():
        return None
    try:
        data = parse(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']}")
        sources = tuple(SourceEntry(**item) for item in data["sources"])
        return Lock(release=data["release"], sources=sources, files=tuple(FileEntry(**item) for item in data["files"]))
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error})", hint=f"omnimamba download --force --dir {directory}"
        ) from None


def write(directory: Path, release: str, sources: Iterable[SourceEntry]) -> None:
    """Write the lock file: the sources, and hashes of the directory's files (but the card, which people edit)."""
    files = [
        FileEntry(name=path.name, size_bytes=path.stat().st_size, sha256=sha256(path))
        for path in sorted(directory.iterdir())
        if path.is_file() and path.name not in (LOCK, CARD)
    ]
    ordered = sorted(sources, key=lambda source: source.key)
    data = {
        "format": FORMAT,
        "release": release,
        "made_by": f"omnimamba {__version__}",
        "sources": [asdict(source) for source in ordered],
        "files": [asdict(file) for file in files],
    }
    (directory / LOCK).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def check(directory: Path, lock: Lock, *, hashes: bool = False) -> str | None:
    """What is wrong with a model directory, in words; None if nothing is.

    Compares sizes alone, or with `hashes` every byte.
    """
    for file in lock.files:
        path = directory / file.name
        if not path.is_file():
            return f"{file.name} is missing"
        if (size := path.stat().st_size) != file.size_bytes:
            return f"{file.name} has {size:,} bytes instead of {file.size_bytes:,}"
        if hashes and sha256(path) != file.sha256:
            return f"{file.name} has another hash than when it was written"
    return None
