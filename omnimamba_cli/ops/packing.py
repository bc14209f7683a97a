"""Sequences of one or two lengths, one after another in the rows of a tensor, so that both tasks share kernel launches.

Knows no kernel; how kernels find their sequence is in triton_math.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Packing:
    """`b` sequences of `l` rows each, then `more` sequences of `more_l` rows each."""

    b: int
    l: int
    more: int = 0
    more_l: int = 1  # never 0: kernels divide by it

    @classmethod
    def of(cls, shapes: Sequence[tuple[int, int]]) -> "Packing":
        """From (number of sequences, their length), one or two pairs."""
        assert 1 <= len(shapes) <= 2, "two tasks at most share a launch"
        return cls(*shapes[0], *(shapes[1] if len(shapes) > 1 else ()))

    @property
    def sequences(self) -> int:
        """Number of sequences, of both lengths together."""
        return self.b + self.more

    @property
    def rows(self) -> int:
        """Number of rows of all sequences together."""
        return self.b * self.l + self.more * self.more_l

    def pieces(self, size: int) -> int:
        """Number of pieces of at most `size` rows, where every sequence is cut by itself."""
        return self.b * -(-self.l // size) + self.more * -(-self.more_l // size)

    @property
    def longest(self) -> int:
        """Rows of the longest sequence."""
        return max(self.l, self.more_l if self.more else 0)

    @property
    def lengths(self) -> tuple[int, int, int]:
        """The three numbers that kernels need: b, l, more_l."""
        return self.b, self.l, self.more_l
