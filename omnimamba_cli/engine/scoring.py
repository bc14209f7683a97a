"""What counts as a right answer, and counting them. Knows no model and no files."""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field

ARTICLES = frozenset({"a", "an", "the"})
NUMBERS = {
    word: str(value)
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen twenty".split()
    )
}
SPELLINGS = {"colour": "color", "grey": "gray"}
APOSTROPHES = "'\u2019"


def normalised(text: str) -> str:
    """An answer without what does not make it wrong: case, articles, punctuation, numbers as words, British spelling.

    An answer of nothing else ("A!") keeps its letters and marks, so that two such answers still differ.

    >>> normalised("Two GREY yo-yos, and the fox.")
    '2 gray yo yos and fox'
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    letters = "".join("" if c in APOSTROPHES else c if _in_word(c) else " " for c in folded)
    words = [NUMBERS.get(word, SPELLINGS.get(word, word)) for word in letters.split() if word not in ARTICLES]
    return " ".join(words) or " ".join(folded.split())


def _in_word(character: str) -> bool:
    """Letters, digits, and the marks that some scripts write on them."""
    return character.isalnum() or unicodedata.category(character).startswith("M")


def is_right(answer: str, accepted: Iterable[str]) -> bool:
    """Whether an answer is one of the accepted ones, whole, after `normalised`."""
    given = normalised(answer)
    return bool(given) and any(given == normalised(text) for text in accepted)


@dataclass
class Score:
    """How many were asked and how many answers were right."""

    right: int = 0
    asked: int = 0

    def add(self, right: bool) -> None:
        """Counts one answer."""
        self.right += right
        self.asked += 1

    def plus(self, other: "Score") -> "Score":
        """Both together."""
        return Score(self.right + other.right, self.asked + other.asked)

    @property
    def share(self) -> float | None:
        """0 to 1; None when nothing was asked."""
        return self.right / self.asked if self.asked else None

    def to_dict(self) -> dict[str, float | int | None]:
        """Plain data, the share to four digits."""
        share = self.share
        return {"right": self.right, "asked": self.asked, "share": None if share is None else round(share, 4)}

    def __str__(self) -> str:
        return "-" if self.share is None else f"{100 * self.share:.1f} %"


@dataclass
class Tally:
    """Scores by group (a split) and by item (a type of question), both in the order of their first answer."""

    scores: dict[tuple[str, str], Score] = field(default_factory=dict)

    def add(self, group: str, item: str, right: bool) -> None:
        """Counts one answer."""
        self.scores.setdefault((group, item), Score()).add(right)

    @property
    def groups(self) -> list[str]:
        """Every group that was asked anything."""
        return list(dict.fromkeys(group for group, _ in self.scores))

    @property
    def items(self) -> list[str]:
        """Every item that was asked."""
        return list(dict.fromkeys(item for _, item in self.scores))

    def total(self, group: str | None = None, item: str | None = None) -> Score:
        """The scores of a group, of an item, of one in the other, or of everything."""
        result = Score()
        for (its_group, its_item), score in self.scores.items():
            if group in (None, its_group) and item in (None, its_item):
                result = result.plus(score)
        return result
