"""Samples that cannot be used: each left out, counted, named once, and too many of them refused."""

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
    also: tuple["Bad", ...] = ()  # those that should have taken its place


@dataclass
class Rejects:
    """Samples left out: name -> why. `limit` is the share of bad samples that is put up with."""

    limit: float = BAD_SHARE
    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, reason: str) -> bool:
        """Count a sample, one that comes again in a later epoch only once. Returns whether it is new."""
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
        """Raises DataError when more than the limit of `seen` samples were bad; `total`: seen is a part of so many."""
        if len(self.reasons) > allowed(self.limit, seen, total):
            raise DataError(
                f"{len(self.reasons):,} of {seen:,} samples are bad, more than {100 * self.limit:.4g}%; "
                f"first: {self.first}",
                hint=REMEDY,
            )


def allowed(limit: float, seen: int, total: int | None = None) -> float:
    """Bad samples among those seen that keep to the limit. A part of the data may have three deviations more."""
    wanted = limit * seen
    return wanted + 3 * math.sqrt(wanted) if total is not None and seen < total else wanted
