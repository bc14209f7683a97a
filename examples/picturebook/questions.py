"""Questions about a scene with answers from ground truth.

Types: name describe ground count things beside exists where bigger colour sort left_of between side style.
A type that has no plain answer for a scene is not asked.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from captions import describe
from concepts import GENERIC, PEOPLE, Concept, load_concepts, same_group
from names import (
    FLAT_STYLES,
    NUMBER_WORDS,
    accepted_names,
    accepted_sets,
    definite,
    name_colour,
    on_ground,
    plural_noun,
)
from scenes import Scene, Thing


@dataclass(frozen=True, kw_only=True)
class QA:
    """One question, the answer to train on, and every answer that is right."""

    question: str
    answer: str
    accepted: list[str]  # `answer` first
    type: str


NAME_PHRASES = ("what is here?", "what is in the picture?", "what do you see?", "what is shown here?", "what is this?")
DESCRIBE_PHRASES = (
    "describe the picture",
    "describe this picture",
    "what is in the picture and what color is behind it?",
)
GROUND_PHRASES = (
    "what color is the background?",
    "what is the background color?",
    "which color is the background?",
    "what colour is the background?",
)
THINGS_PHRASES = ("how many things are there?", "how many things are in the picture?", "how many things do you see?")
SORTS: dict[str, frozenset[str]] = {
    "an animal": frozenset({"animal", "bird", "reptile", "sea animal", "insect"}),
    "a vehicle": frozenset({"vehicle", "boat", "aircraft"}),
    "food": frozenset({"fruit", "vegetable", "food", "dessert"}),
    "a person": frozenset({"person"}),
    "a plant": frozenset({"flower", "plant"}),
    "a building": frozenset({"building"}),
    "clothing": frozenset({"clothing"}),
    "a musical instrument": frozenset({"musical instrument"}),
    "a face": frozenset({"face"}),
    "a tool": frozenset({"tool"}),
}
# Kinds that share members (the face of a dog, a mushroom) are not asked against each other.
OVERLAPPING = frozenset(
    {frozenset({"a face", "a person"}), frozenset({"a face", "an animal"}), frozenset({"food", "a plant"})}
)
# In those categories, but nobody would call them so (a wheel, a wing, a spider web).
ODD_WORDS = frozenset(
    "wheel sign light track barrel pump station anchor preserver seat parachute satellite feather wing web germ print "
    "seashell nose coral nest brick rock log gate skull crossbone row crane bomb gear hook chain scale boomerang "
    "skateboard skate wheelchair stroller statue diamond ring lipstick fan wing cat bouquet "
    "shield sword dagger bow axe gravestone ladder".split()
)


def questions(scene: Scene, rng: random.Random, n: int) -> list[QA]:
    """n questions or fewer: one that names what is there, then others by weight, no type more than twice."""
    asked = [_name(scene, rng)]
    # Of a single thing the answer is always "one": asked seldom, or "one" would be the best guess.
    rare = COUNTING if len(scene.things) == 1 else frozenset()
    left = {ask: weight * (0.25 if ask in rare else 1) for ask, weight in WEIGHTS.items()}
    seen = {asked[0].question}
    repeats: dict[str, int] = {}
    while len(asked) < n and left:
        ask = rng.choices(list(left), list(left.values()))[0]
        qa = ask(scene, rng)
        if qa is None or qa.question in seen:
            del left[ask]
            continue
        seen.add(qa.question)
        asked.append(qa)
        repeats[qa.type] = repeats.get(qa.type, 0) + 1
        if repeats[qa.type] == 2 or ask in ONCE:
            del left[ask]
    rng.shuffle(asked)
    return asked


def _qa(type_: str, question: str, answer: str, *others: str) -> QA:
    """A question with its answers, duplicates removed."""
    return QA(question=question, answer=answer, accepted=list(dict.fromkeys((answer, *others))), type=type_)


def _asked_name(thing: Thing) -> str:
    """How a question mentions a thing: without its tint, which would answer others."""
    return definite(thing.concept)


def _name(scene: Scene, rng: random.Random, phrase: str | None = None) -> QA:
    """What is here?"""
    phrases = NAME_PHRASES if scene.kind == "one" else NAME_PHRASES[:-1]
    return _qa("name", phrase or rng.choice(phrases), *accepted_sets(scene))


def naming_question(scene: Scene) -> QA:
    """The plain naming question, for tests of a model."""
    return _name(scene, random.Random(0), NAME_PHRASES[0])


def _describe(scene: Scene, rng: random.Random) -> QA:
    """The full caption; shorter names are right too."""
    names = accepted_sets(scene)
    ground = on_ground(scene.ground)
    phrase = rng.choices(DESCRIBE_PHRASES, (5, 3, 1))[0]
    return _qa("describe", phrase, describe(scene), *(f"{name} {ground}" for name in names), *names)


def _ground(scene: Scene, rng: random.Random) -> QA:
    """The ground's colour."""
    return _qa("ground", rng.choice(GROUND_PHRASES), scene.ground)


def _count(scene: Scene, rng: random.Random) -> QA | None:
    """How many of one thing."""
    thing = rng.choice(scene.things)
    if not thing.concept.counts:
        return None
    noun = thing.concept.plural if rng.random() < 0.8 else plural_noun(thing)
    n = sum(other.concept.id == thing.concept.id for other in scene.things)
    phrase = rng.choice(("how many {} are there?", "how many {} do you see?", "how many {} are in the picture?"))
    return _qa("count", phrase.format(noun), NUMBER_WORDS[n], str(n))


def _things(scene: Scene, rng: random.Random) -> QA | None:
    """How many things in all; not for a thing that is many by itself."""
    n = len(scene.things)
    if any(thing.concept.det != "a" for thing in scene.things):
        return None
    return _qa("things", rng.choice(THINGS_PHRASES), NUMBER_WORDS[n], str(n))


def _beside(scene: Scene, rng: random.Random) -> QA | None:
    """What is left of, right of, above or below the other of two things, or beside one in a row."""
    words = {"left_right": ("to the left of", "to the right of"), "above_below": ("above", "below")}.get(scene.layout)
    if words is None or scene.kind != "two":
        return None
    place = rng.randrange(2)
    answer, other = scene.things[place], scene.things[1 - place]
    question = f"what is {words[place]} {_asked_name(other)}?"
    return _qa("beside", question, *accepted_names(answer))


def _exists(scene: Scene, rng: random.Random) -> QA | None:
    """Is there an X; half of the answers are no, by the coin that is thrown first."""
    shown = [thing.concept for thing in scene.things]
    if any(concept.det != "a" for concept in shown):
        return None
    yes = rng.random() < 0.5
    concept = rng.choice(shown) if yes else absent_concept(shown, rng)
    phrase = rng.choice(("is there {} in the picture?", "is there {}?", "do you see {}?", "is there {} here?"))
    return _qa("exists", phrase.format(concept.caption), "yes" if yes else "no")


def absent_concept(shown: list[Concept], rng: random.Random) -> Concept:
    """A thing that is certainly not there: no word in common, no wider or narrower name of what is shown."""
    concepts = load_concepts()
    near = rng.random() < 0.4
    words = frozenset().union(*(concept.words for concept in shown))
    for attempt in range(400):
        other = rng.choice(concepts)
        related = any(same_group(other, concept) for concept in shown)
        if other.det != "a" or other.words & words or (near and attempt < 200 and not related):
            continue
        # "Is there a man?" beside a judge has no plain answer, nor "is there a bird?" beside an eagle.
        people = other.category in PEOPLE and any(concept.category in PEOPLE for concept in shown)
        if people or (related and (other.words | words) & GENERIC):
            continue
        return other
    raise AssertionError("every concept resembles what is shown")


def _where(scene: Scene, rng: random.Random) -> QA | None:
    """Where one thing is; asked only where one word for it is plainly right."""
    if scene.kind == "count":
        return None
    thing = rng.choice(scene.things)
    if thing.concept.det not in ("a", "the"):
        return None
    phrase = rng.choice(("where is {}?", "where is {} in the picture?"))
    answers = places(scene, thing)
    return _qa("where", phrase.format(_asked_name(thing)), *answers) if answers else None


def places(scene: Scene, thing: Thing) -> list[str]:
    """Right answers to "where is it?", best first; none when the place is between two words."""
    x, y = thing.centre
    if scene.layout in ("left_right", "row"):
        words = (
            ("on the left", "in the middle", "on the right")
            if scene.kind == "three"
            else ("on the left", "on the right")
        )
        answer = words[scene.things.index(thing)]
        return [answer, *(["in the center"] if answer == "in the middle" else [])]
    if scene.layout == "above_below":
        return [("at the top", "at the bottom")[scene.things.index(thing)]]
    column, row = _third(x, ("left", "center", "right")), _third(y, ("top", "center", "bottom"))
    if column is None or row is None:
        return []
    if column == row == "center":
        return ["in the middle", "in the center"]
    if row == "center":
        return [f"on the {column}"]
    if column == "center":
        return [f"at the {row}"]
    return [f"in the {row} {column} corner", f"in the {row} {column}", f"at the {row} {column}"]


def _third(value: float, words: tuple[str, str, str]) -> str | None:
    """First, middle or last word for a place from 0 to 1; None near the borders between them."""
    if value < 0.36:
        return words[0]
    if value > 0.64:
        return words[2]
    return words[1] if 0.44 < value < 0.56 else None


def _bigger(scene: Scene, rng: random.Random) -> QA | None:
    """Which of two things is bigger or smaller."""
    if scene.bigger is None:
        return None
    word = rng.choice(("bigger", "smaller"))
    answer = scene.things[scene.bigger if word == "bigger" else 1 - scene.bigger]
    a, b = rng.sample([_asked_name(thing) for thing in scene.things], 2)
    phrase = rng.choice((f"which is {word}, {a} or {b}?", f"what is {word}, {a} or {b}?"))
    return _qa("bigger", phrase, _asked_name(answer), *accepted_names(answer))


def _colour(scene: Scene, rng: random.Random) -> QA | None:
    """What colour a tinted thing is, or one whose name says its colour."""
    thing = rng.choice(scene.things)
    named = (thing.tint, thing.concept.np) if thing.tint is not None else name_colour(thing.concept)
    if named is None:
        return None
    colour, noun = named
    if scene.kind == "count":
        # A tinted thing has no colour in its plural, so nothing is cut from it.
        noun = thing.concept.plural.removeprefix(f"{colour} ")
    word = rng.choices(("color", "colour"), (3, 1))[0]
    return _qa("colour", f"what {word} {'are' if scene.kind == 'count' else 'is'} the {noun}?", colour)


def sort_of(concept: Concept) -> str | None:
    """The plain kind of a thing ("an animal"), or None for things that fit no kind well."""
    if concept.words & ODD_WORDS and concept.category not in ("animal", "food", "dessert"):
        return None
    if concept.words & {"print", "nose", "wing", "web", "germ"} or concept.det != "a":
        return None
    return next((sort for sort, categories in SORTS.items() if concept.category in categories), None)


def _sort(scene: Scene, rng: random.Random) -> QA | None:
    """Is this an animal or a vehicle?"""
    sort = sort_of(scene.things[0].concept)
    if scene.kind != "one" or sort is None:
        return None
    other = rng.choice([word for word in SORTS if word != sort and frozenset({word, sort}) not in OVERLAPPING])
    first, second = rng.sample((sort, other), 2)
    return _qa("sort", f"is this {first} or {second}?", sort)


def _left_of(scene: Scene, rng: random.Random) -> QA | None:
    """Is X left or right of Y; or a yes or no about it, half of each."""
    if scene.kind != "two" or scene.layout not in ("left_right", "above_below"):
        return None
    words = ("to the left of", "to the right of") if scene.layout == "left_right" else ("above", "below")
    place = rng.randrange(2)
    a, b = _asked_name(scene.things[place]), _asked_name(scene.things[1 - place])
    if rng.random() < 0.5:
        claim = rng.randrange(2)
        return _qa("left_of", f"is {a} {words[claim]} {b}?", "yes" if claim == place else "no")
    if scene.layout == "left_right":
        return _qa(
            "left_of",
            f"is {a} to the left or to the right of {b}?",
            words[place].removesuffix(" of"),
            ("left", "right")[place],
        )
    return _qa("left_of", f"is {a} above or below {b}?", words[place])


def _between(scene: Scene, rng: random.Random) -> QA | None:
    """What is between the outer two of three in a row."""
    if scene.layout != "row":
        return None
    a, b = rng.sample([_asked_name(scene.things[0]), _asked_name(scene.things[2])], 2)
    return _qa("between", f"what is between {a} and {b}?", *accepted_names(scene.things[1]))


def _side(scene: Scene, rng: random.Random) -> QA | None:
    """What is on the left, in the middle, at the top."""
    words = {
        "left_right": ("on the left", "on the right"),
        "above_below": ("at the top", "at the bottom"),
        "row": ("on the left", "in the middle", "on the right"),
    }.get(scene.layout)
    if words is None:
        return None
    place = rng.randrange(len(scene.things))
    return _qa("side", f"what is {words[place]}?", *accepted_names(scene.things[place]))


def _style(scene: Scene, rng: random.Random) -> QA | None:
    """Flat or 3-D, where the style is plainly one of the two."""
    styles = {thing.style for thing in scene.things}
    flat = styles <= FLAT_STYLES
    if any(thing.hand is not None for thing in scene.things):
        return None
    if not flat and styles != {"fluent_3d"}:
        return None
    phrase = rng.choice(
        ("is this a flat drawing or a 3D rendering?", "what style is this?", "what style is this picture?")
    )
    return _qa("style", phrase, *(("a flat drawing", "flat") if flat else ("a 3D rendering", "3D")))


Asker = Callable[[Scene, random.Random], QA | None]
# Chosen so that ground colour and yes or no stay well under half of all questions.
WEIGHTS: dict[Asker, float] = {
    _name: 2.5, _describe: 1.5, _ground: 1.2, _count: 3.0, _things: 1.5, _beside: 4.0, _exists: 1.6, _where: 1.4,
    _bigger: 6.0, _colour: 8.0, _sort: 1.1, _left_of: 2.0, _between: 8.0, _side: 3.0, _style: 0.6,
}  # fmt: skip
COUNTING = frozenset({_count, _things})
ONCE = frozenset({_ground, _describe, _things, _sort, _style, _bigger, _between, _colour})
