"""What the paper claims for its speed and memory, beside what was measured here. arXiv:2503.08686, one RTX 4090."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from omnimamba_cli.engine.bench_rows import Row

NEAR = 0.1  # a length or time measured within a tenth of the paper's stands for it

# seconds for so many tokens of text
PAPER_SECONDS: Mapping[str, Mapping[int, float]] = {
    "omnimamba-1.3b": {4_000: 16.6, 16_000: 66.0, 100_000: 410.0},
    "show-o": {4_000: 341.0, 16_000: 7_940.0},
    "janusflow": {4_000: 79.0, 16_000: 270.0, 100_000: 4_180.0},
}


def paper_seconds(system: str, length: int) -> float | None:
    """The paper's figure for a system at about this length."""
    for tokens, seconds in PAPER_SECONDS.get(system, {}).items():
        if abs(length - tokens) <= NEAR * tokens:
            return seconds
    return None


@dataclass(frozen=True)
class Claim:
    """One of the paper's comparisons."""

    measure: Literal["speed", "memory", "images"]
    value: float  # times as fast, or share of memory saved
    against: str
    length: int | None = None  # tokens of text
    batch: int = 1

    def __str__(self) -> str:
        if self.measure == "images":
            return f"{self.value:.1f} times the images/s of {self.against} (batch {self.batch})"
        if self.measure == "speed":
            return f"{self.value:g} times as fast as {self.against} at {self.length:,} tokens"
        return f"{100 * self.value:g} % less memory than {self.against} at {self.length:,} tokens"


CLAIMS = (
    Claim("speed", 119.2, "show-o", 16_000),
    Claim("memory", 0.63, "show-o", 23_000),
    Claim("speed", 10.2, "janusflow", 100_000),
    Claim("memory", 0.404, "janusflow", 100_000),
    Claim("images", 5.68 / 0.81, "show-o", batch=16),  # images/s, the paper's own over the other's
    Claim("images", 5.68 / 1.02, "janusflow", batch=16),
)


@dataclass(frozen=True)
class Verdict:
    """A claim with what was measured against each opponent, by name."""

    claim: Claim
    measured: dict[str, float]
    system: str  # of ours
    small: bool = False  # not the paper's model, and its opponents are no larger

    @property
    def holds(self) -> list[str]:
        """The opponents against which the claim is reached."""
        return [name for name, value in self.measured.items() if value >= self.claim.value]

    @property
    def fails(self) -> list[str]:
        """The opponents against which it is not."""
        return [name for name in self.measured if name not in self.holds]

    def to_dict(self) -> dict[str, Any]:  # Any: a JSON object
        """A JSON object; values as the claim has them: times, or shares."""
        c = self.claim
        return {
            "kind": "claim",
            "claim": str(c),
            "measure": c.measure,
            "against": c.against,
            "seq_len": c.length,
            "batch": c.batch,
            "system": self.system,
            "published": round(c.value, 4),
            "measured": {name: float(f"{value:.4g}") for name, value in self.measured.items()},
            "holds_under": self.holds,
            "fails_under": self.fails,
        }

    def __str__(self) -> str:
        shown = {name: self._shown(value) for name, value in self.measured.items()}
        parts = [
            f"{word} {', '.join(f'{name} ({shown[name]})' for name in names)}"
            for word, names in (("holds against", self.holds), ("does not hold against", self.fails))
            if names
        ]
        return f"{self.claim}: {'; '.join(parts)}"

    def _shown(self, value: float) -> str:
        if self.claim.measure == "memory":
            return f"{100 * value:.0f} %"
        # a tenth more than three digits, so that 119.4 is seen to be above the claim's 119.2
        return f"{value:,.0f} times" if value >= 1000 else f"{value:.{4 if value >= 100 else 3}g} times"


def verdicts(rows: Sequence[Row], *, small: bool = False) -> list[Verdict]:
    """Verdicts on the claims for which there are rows: our system and at least one opponent at the claim's length.

    small: the model is not of the paper's size. Then a process's memory is mostly PyTorch, and says nothing.
    """
    found = []
    for claim in CLAIMS:
        if small and claim.measure == "memory" and rows and rows[0].machine.device.type == "cpu":
            continue
        alike = [row for row in rows if row.error is None and row.method != "computed" and _belongs_to(row, claim)]
        own = next((row for row in alike if not row.opponent), None)
        measured = {row.system: _ratio(claim, own, row) for row in alike if row.opponent and own is not None}
        known = {name: value for name, value in measured.items() if value is not None}
        if known and own is not None:
            found.append(Verdict(claim, known, own.system, small))
    return found


def _belongs_to(row: Row, claim: Claim) -> bool:
    """Whether a row was measured under the conditions of a claim."""
    if claim.measure == "images":
        return row.task == "image" and row.batch == claim.batch
    length = claim.length or 0
    return row.task == "text" and row.batch == 1 and abs((row.seq_len or 0) - length) <= NEAR * length


def _ratio(claim: Claim, own: Row | None, other: Row) -> float | None:
    """What was measured, in the claim's terms; None where one of both is not known."""
    if own is None:
        return None
    if claim.measure == "images":
        mine, theirs = own.pictures_per_s, other.pictures_per_s
        return mine / theirs if mine and theirs else None
    if claim.measure == "speed":
        return other.total_s / own.total_s if other.total_s and own.total_s else None
    if own.memory is None or other.memory is None or other.method == "extrapolated":
        return None  # the longest length was not reached, so its memory is not known
    mine_bytes, their_bytes = own.memory.main, other.memory.main
    return 1 - mine_bytes / their_bytes if mine_bytes and their_bytes else None
