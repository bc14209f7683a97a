"""Sequences of one or two lengths, one behind the other in the rows of a tensor: so tasks share a step's launches.

Knows no kernel; what kernels do with it is in triton_math.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Packing:
    """`b` sequences of `l` rows each, behind them `more` of `more_l`."""

    b: int
    l: int
    more: int = 0
    more_l: int = 1  # never 0: kernels divide by it

    @classmethod
    def of(cls, shapes: Sequence[tuple[int, int]]) -> "Packing":
        """Sequences of (how many, how long), of two lengths at most."""
        assert 1 <= len(shapes) <= 2, "two tasks at most share a launch"
        return cls(*shapes[0], *(shapes[1] if len(shapes) > 1 else ()))

    @property
    def sequences(self) -> int:
        """Of both lengths."""
        return self.b + self.more

    @property
    def rows(self) -> int:
        """Of all sequences."""
        return self.b * self.l + self.more * self.more_l

    def pieces(self, size: int) -> int:
        """Of at most `size` rows, if every sequence is cut by itself."""
        return self.b * -(-self.l // size) + self.more * -(-self.more_l // size)

    @property
    def longest(self) -> int:
        """Rows."""
        return max(self.l, self.more_l if self.more else 0)

    @property
    def lengths(self) -> tuple[int, int, int]:
        """What kernels are told: b, l, more_l."""
        return self.b, self.l, self.more_l
