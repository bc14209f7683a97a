"""The 1,038 things PictureBook knows: their names, and which of them must not meet in one scene."""

from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from palette import COLOUR_WORDS

FOLDER = Path(__file__).resolve().parent
STOP_WORDS = frozenset("a an the of with and in on at to its their his her no without for up down out over".split())
# Names of a whole kind: an eagle is also a bird, so "is there a bird?" has no plain answer beside one.
GENERIC = frozenset(
    "bird fish flower tree house ship train car airplane book moon star cloud shell insect shoe hat bag boat "
    "man woman boy girl baby person doctor dog cat monkey horse bottle cup bowl box ball mushroom plant lizard "
    "beetle pen key bell clock camera telephone guitar drum boot medal ticket calendar mountain castle coat "
    "dress ghost robot building tower truck bus beach animal whale mailbox sheep pig cow rabbit chicken snake bear "
    "dinosaur computer watch lamp sandwich bread cake cookie drink potato pepper bicycle motorcycle scooter".split()
)
PEOPLE = frozenset({"person", "character", "face", "creature", "body part"})
GROUPS: dict[str, frozenset[str]] = {
    "animal": frozenset({"animal", "bird", "reptile", "sea animal", "insect"}),
    "food": frozenset({"fruit", "vegetable", "food", "dessert", "drink", "kitchen item"}),
    "plant": frozenset({"flower", "plant", "fruit", "vegetable"}),
    "vehicle": frozenset({"vehicle", "boat", "aircraft"}),
    "building": frozenset({"building", "place"}),
    "people": PEOPLE,
    "sky": frozenset({"weather", "shape", "decoration"}),
    "paper": frozenset({"paper item", "office item", "mail item", "writing tool", "money"}),
}
# Aliases that take no article.
BARE_ALIASES = frozenset(
    {
        "corn", "broccoli", "French fries", "pizza", "pie", "lipstick", "fire", "strips of bacon", "pieces of sushi",
        "green leaves", "houses", "pink hearts", "thumbs up", "thumbs down", "two mugs of beer", "money with wings",
    }
)  # fmt: skip
# Spoken "you-" or "one-" at the start: "a", though the letter is a vowel.
CONSONANT_STARTS = ("uni", "eu", "ewe", "one", "ufo", "use", "u-")
# Spelled out, and the first letter's name starts with a vowel; or a silent h.
VOWEL_STARTS = ("hour", "honest", "heir", "x-ray", "suv", "mri", "sos")


@dataclass(frozen=True, kw_only=True)
class Concept:
    """One thing with its English names."""

    index: int  # place in the list sorted by id: the class number of the vision tower
    id: str  # code points joined by "-", FE0F left out
    caption: str  # with its determiner: "a fox"
    np: str  # without: "fox"
    plural: str  # "" when it cannot be counted
    det: str  # "a", "some", "the" or "0"
    category: str
    aliases: tuple[str, ...]
    words: frozenset[str]  # content words of all names, lower case
    tintable: bool  # no name of it says a colour

    @property
    def joins(self) -> bool:
        """Whether it may stand beside other things."""
        return self.det == "a" and self.category != "place"

    @property
    def counts(self) -> bool:
        """Whether there may be several of it."""
        return self.joins and bool(self.plural)

    @property
    def alias_captions(self) -> tuple[str, ...]:
        """The aliases with their articles."""
        return tuple(alias if alias in BARE_ALIASES else with_article(alias) for alias in self.aliases)


def article(phrase: str) -> str:
    """ "a" or "an", by the sound of the first word."""
    low = phrase.lower()
    if low.startswith(VOWEL_STARTS):
        return "an"
    if low.startswith(CONSONANT_STARTS):
        return "a"
    return "an" if low[0] in "aeiou" else "a"


def with_article(phrase: str) -> str:
    """The phrase with "a" or "an" before it."""
    return f"{article(phrase)} {phrase}"


def content_words(phrase: str) -> set[str]:
    """The words of a phrase that carry meaning, in lower case, singular and plural made alike."""
    words = {word.strip(".,'") for word in phrase.lower().replace("-", " ").replace("'s", "").split()}
    return {word[:-1] if len(word) > 3 and word.endswith("s") else word for word in words - STOP_WORDS}


@lru_cache(maxsize=4)
def load_concepts(path: Path = FOLDER / "concepts.tsv") -> tuple[Concept, ...]:
    """All concepts sorted by id; `index` is the place in that order."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:] if line]
    return tuple(_concept(index, row) for index, row in enumerate(sorted(rows, key=lambda row: row[0])))


def _concept(index: int, row: list[str]) -> Concept:
    """A concept from one row of the table."""
    id_, _emoji, caption, np_, plural, det, category, aliases = row
    names = [np_, *(alias for alias in aliases.split("|") if alias)]
    raw = {word for name in names for word in name.lower().replace("-", " ").split()}
    return Concept(
        index=index,
        id=id_,
        caption=caption,
        np=np_,
        plural=plural,
        det=det,
        category=category,
        aliases=tuple(names[1:]),
        words=frozenset(word for name in names for word in content_words(name)),
        tintable=det == "a" and not raw & COLOUR_WORDS,
    )


@lru_cache(maxsize=4)
def load_streamline(path: Path = FOLDER / "streamline.tsv") -> tuple[tuple[str, str], ...]:
    """Pairs (concept id, icon name) of the set that is matched by name."""
    rows = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line)
    return tuple((id_, icon) for id_, icon in rows)


@cache
def twin_of(concept: Concept) -> Concept | None:
    """The other of a man and a woman of one role ("a male chef", "a female chef"), or None."""
    by_id = {other.id: other for other in load_concepts()}
    if concept.category not in ("person", "character"):
        return None
    for mine, theirs in (("2642", "2640"), ("2640", "2642"), ("1F468", "1F469"), ("1F469", "1F468")):
        # Hair styles are no roles: those men and women are drawn apart.
        if mine in concept.id.split("-") and not concept.id.endswith(("1F9B0", "1F9B1", "1F9B2", "1F9B3")):
            other = by_id.get(concept.id.replace(mine, theirs))
            if other is not None and "-" in concept.id and not concept.id.startswith("1F471"):
                return other
    return None


def same_group(a: Concept, b: Concept) -> bool:
    """Whether two concepts are of one wide kind (animals, food, people ...)."""
    return a.category == b.category or any({a.category, b.category} <= group for group in GROUPS.values())


def clash(a: Concept, b: Concept) -> bool:
    """Whether a question about one of the two could also mean the other."""
    if a.words & b.words:
        return True
    return same_group(a, b) and bool((a.words | b.words) & GENERIC)
