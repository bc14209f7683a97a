"""What a run remembers of its data files, so that one that goes on notices when they are others."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path


@dataclass(frozen=True)
class DataFile:
    """A data file as it was opened; cheap to know, and the same after a copy to another disk."""

    path: str  # as it was given; for people, a moved file is the same one
    bytes: int | None  # None: a folder, or behind a URL
    samples: int  # that can be used

    @classmethod
    def opened(cls, path: Path | str, samples: int) -> "DataFile":
        """Of a file, folder or URL that so many samples were found in."""
        return cls(str(path), Path(path).stat().st_size if Path(path).is_file() else None, samples)

    def __str__(self) -> str:
        size = "" if self.bytes is None else f" in {self.bytes:,} bytes"
        return f"{self.samples:,} samples{size}"


def difference(before: Sequence[DataFile], now: Sequence[DataFile]) -> str | None:
    """The first file that is not what it was, and what it was; None where all are. Their order counts."""
    for old, new in zip_longest(before, now):
        if new is None:
            return f"{old.path} ({old}) is missing: the run was started with it"
        if old is None:
            return f"{new.path} ({new}) is more than the run was started with"
        if (old.bytes, old.samples) == (new.bytes, new.samples):
            continue
        if old.path == new.path:
            return f"{new.path} has changed since the run was started: {old} then, {new} now"
        return f"{new.path} ({new}) is in the place of {old.path} ({old}), which the run was started with"
    return None
