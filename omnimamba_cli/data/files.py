"""What a run remembers of its data files, so that a resumed run notices when they have changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path


@dataclass(frozen=True)
class DataFile:
    """A data file as it was opened: facts that are cheap to find and do not change when the file is copied."""

    path: str  # as it was given; for messages: a moved file counts as the same
    bytes: int | None  # None for a folder or a URL
    samples: int  # usable ones

    @classmethod
    def opened(cls, path: Path | str, samples: int) -> "DataFile":
        """The record of a file, folder or URL in which so many usable samples were found."""
        return cls(str(path), Path(path).stat().st_size if Path(path).is_file() else None, samples)

    def __str__(self) -> str:
        size = "" if self.bytes is None else f" in {self.bytes:,} bytes"
        return f"{self.samples:,} samples{size}"


def difference(before: Sequence[DataFile], now: Sequence[DataFile]) -> str | None:
    """A sentence about the first file that differs; None where all are the same, in the same order."""
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
