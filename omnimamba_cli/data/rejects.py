"""Samples that cannot be used: left out, counted and named; too many of them are an error."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from omnimamba_cli.config import BAD_SHARE
from omnimamba_cli.errors import DataError

REMEDY = "repair the data, check --image-root, or raise --max-bad-share; omnimamba data check FILE shows what is wrong"


@dataclass(frozen=True)
class Bad:
    """A sample that cannot be used, as a worker process reports it."""

    name: str
    reason: str
    also: tuple["Bad", ...] = ()  # the replacements that were tried and are bad, too


@dataclass
class Rejects:
    """Samples left out, name -> why; `limit` is the share of bad samples that is tolerated."""

    limit: float = BAD_SHARE
    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, reason: str) -> bool:
        """Count a sample once, however many epochs meet it. Returns whether it is new."""
        if name in self.reasons:
            return False
        self.reasons[name] = reason
        return True

    @property
    def first(self) -> str | None:
        """The first one with its reason."""
        return next((f"{name}: {reason}" for name, reason in self.reasons.items()), None)

    def none_left(self, paths: Iterable[object]) -> DataError:
        """The error for data of which nothing can be used."""
        why = f"; first: {self.first}" if self.reasons else ": there is none"
        return DataError(f"no sample of {', '.join(map(str, paths))} can be used{why}", hint=REMEDY)

    def check(self, seen: int, total: int | None = None) -> None:
        """Raises DataError when too many of `seen` samples (a part of `total`, where that is given) are bad."""
        if len(self.reasons) > allowed(self.limit, seen, total):
            raise DataError(
                f"{len(self.reasons):,} of {seen:,} samples are bad, more than {100 * self.limit:.4g}%; "
                f"first: {self.first}",
                hint=REMEDY,
            )


def allowed(limit: float, seen: int, total: int | None = None) -> float:
    """How many of the samples seen may be bad: three standard deviations more where they are a part of the data."""
    wanted = limit * seen
    return wanted + 3 * math.sqrt(wanted) if total is not None and seen < total else wanted
