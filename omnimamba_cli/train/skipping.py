"""Bad samples that a run meets: counted, each reported once; too many of them end the run."""

from collections.abc import Sequence

import torch
from torch import Tensor, distributed

from omnimamba_cli.data.rejects import Bad, Rejects
from omnimamba_cli.train.events import Event, Skipped

CHECK_AFTER = 100  # samples, or one epoch if that is shorter
NAMED = 50  # samples that are reported by name; further ones are only counted


class Skipping:
    """The bad samples that one process meets in one task's data."""

    def __init__(self, limit: float, samples: int) -> None:
        self.samples = samples  # in the data
        self.seen = 0
        self.rejects = Rejects(limit)
        self.events: list[Event] = []

    def count(self, seen: int, bad: Sequence[Bad]) -> int:
        """Count a batch made of `seen` samples; returns how many were bad. Raises DataError past the limit."""
        self.seen += seen
        for one in bad:
            if self.rejects.add(one.name, one.reason) and (number := len(self.rejects.reasons)) <= NAMED:
                last = "; further ones are counted, not named" if number == NAMED else ""
                self.events.append(Skipped(name=one.name, reason=one.reason + last))
        if bad and self.seen >= min(CHECK_AFTER, self.samples):
            self.rejects.check(min(self.seen, self.samples), self.samples)
        return len(bad)

    def said(self) -> list[Event]:
        """The events that have not been given yet."""
        events, self.events = self.events, []
        return events


@torch.no_grad()
def total(counter: Tensor) -> int:
    """The sum of a counter over all processes, which all must ask for it. The first one keeps it, for snapshots."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return int(counter)
    distributed.all_reduce(counter)
    found = int(counter)
    if distributed.get_rank():
        counter.zero_()
    return found
