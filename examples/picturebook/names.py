"""English for things: "a red fox", "three foxes", "the fox", and every name that counts as right."""

import random
from itertools import permutations

from concepts import Concept, article, twin_of
from palette import COLOUR_NAMES
from scenes import Scene, Thing

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five")
ALIAS_SHARE = 0.1  # of names in captions
FLAT_STYLES = frozenset({"twemoji", "fluent_flat"})
STYLE_NOUNS: dict[str, str] = {"fluent_3d": "3D rendering"} | dict.fromkeys(FLAT_STYLES, "flat drawing")


def thing_noun(thing: Thing) -> str:
    """The name without its determiner, with the tint: "red fox"."""
    return thing.concept.np if thing.tint is None else f"{thing.tint} {thing.concept.np}"


def thing_name(thing: Thing) -> str:
    """The name with its determiner: "a red fox"."""
    if thing.tint is None:
        return thing.concept.caption
    return f"{article(thing.tint)} {thing_noun(thing)}"


def spoken_name(thing: Thing, rng: random.Random) -> str:
    """The name for a caption: sometimes an alias."""
    aliases = thing.concept.alias_captions
    if thing.tint is None and aliases and rng.random() < ALIAS_SHARE:
        return rng.choice(aliases)
    return thing_name(thing)


def sized_name(thing: Thing, size: str) -> str:
    """The name with a size word; only for things that take "a"."""
    return f"{article(size)} {size} {thing_noun(thing)}"


def several(thing: Thing, n: int) -> str:
    """A counted name: "three red foxes"; n 2 to 5."""
    return f"{NUMBER_WORDS[n]} {plural_noun(thing)}"


def plural_noun(thing: Thing) -> str:
    """The plural with the tint: "red foxes"."""
    return thing.concept.plural if thing.tint is None else f"{thing.tint} {thing.concept.plural}"


def definite(concept: Concept) -> str:
    """The name of a thing that was mentioned before: "the fox", "Santa Claus"."""
    proper = concept.det == "0" and not concept.plural and concept.np[0].isupper() and " dolls" not in concept.np
    return concept.np if proper else f"the {concept.np}"


def on_ground(colour: str) -> str:
    """The words for a ground: "on an orange background"."""
    return f"on {article(colour)} {colour} background"


def name_colour(concept: Concept) -> tuple[str, str] | None:
    """Colour and rest of a name that starts with a colour: ("red", "apple"); None for other names."""
    for colour in sorted(COLOUR_NAMES, key=len, reverse=True):
        if concept.det == "a" and concept.np.startswith(f"{colour} "):
            return colour, concept.np[len(colour) + 1 :]
    return None


def join(names: list[str]) -> str:
    """A list in English: "a fox, a dog and a cat"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def accepted_names(thing: Thing) -> list[str]:
    """Every right name of one thing, best first: its name, its plain name, aliases, and its twin's."""
    concept = thing.concept
    names = [thing_name(thing), concept.caption, *concept.alias_captions]
    if thing.tint is not None:
        tinted = [f"{article(thing.tint)} {thing.tint} {alias}" for alias in concept.aliases]
        names += tinted
    twin = twin_of(concept)
    if twin is not None:
        names += [twin.caption, *twin.alias_captions]
        if thing.tint is not None:
            names.append(f"{article(thing.tint)} {thing.tint} {twin.np}")
    return list(dict.fromkeys(names))


def accepted_sets(scene: Scene) -> list[str]:
    """Every right answer to "what is here?", best first; several things in any order."""
    if scene.kind == "one":
        return accepted_names(scene.things[0])
    first = scene.things[0]
    n = len(scene.things)
    if scene.kind == "count":
        twin = twin_of(first.concept)
        plurals = [plural_noun(first), first.concept.plural, *([twin.plural] if twin is not None else [])]
        return list(dict.fromkeys(f"{NUMBER_WORDS[n]} {plural}" for plural in plurals))
    names = [accepted_names(thing) for thing in scene.things]
    # All orders of the plain names; other names only in reading order, or the list would explode.
    answers = [join(list(order)) for order in permutations([options[0] for options in names])]
    for place, options in enumerate(names):
        for option in options[1:]:
            answers.append(join([option if other == place else names[other][0] for other in range(n)]))
    answers.append(join([thing.concept.caption for thing in scene.things]))
    return list(dict.fromkeys(answers))
