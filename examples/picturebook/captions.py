"""True captions of a scene.

In a scene for drawing the caption says everything that is not the plain case: a ground that is not the thing's plain
one, a 3-D rendering, a tint, a size, a corner, who is left of whom. So the same caption always means the same drawing.
"""

import random

from names import STYLE_NOUNS, on_ground, several, sized_name, spoken_name, thing_name
from scenes import SOLID_STYLE, Scene

PICTURE_SHARE = 0.12  # "a picture of NP"
STYLE_SHARE = {"3D rendering": 0.3, "flat drawing": 0.12}  # in drawings a 3-D rendering is always named
GROUND_SHARE = 0.5  # where the caption need not say the ground
PLAIN_GROUND_SHARE = 0.1  # in drawings, of a ground that goes without saying


def caption(scene: Scene, rng: random.Random) -> str:
    """One true caption, by a random template."""
    if scene.kind == "one":
        body = _one(scene, rng)
    elif scene.kind == "two":
        body = _two(scene, rng)
    elif scene.kind == "three":
        body = _three(scene, rng)
    else:
        body = several(scene.things[0], len(scene.things))
    body = _framed(scene, body, rng)
    return f"{body} {on_ground(scene.ground)}" if _says_ground(scene, rng) else body


def captions(scene: Scene, rng: random.Random, n: int) -> list[str]:
    """Up to n different true captions; n draws, so plain scenes give fewer."""
    return list(dict.fromkeys(caption(scene, rng) for _ in range(n)))


def describe(scene: Scene) -> str:
    """The one full caption of a scene: what, how it stands, and the ground."""
    names = [thing_name(thing) for thing in scene.things]
    if scene.kind == "one":
        body = names[0]
    elif scene.kind == "count":
        body = several(scene.things[0], len(scene.things))
    elif scene.kind == "two":
        body = f"{names[0]} {'above' if scene.layout == 'above_below' else 'to the left of'} {names[1]}"
    else:
        body = f"{names[0]}, {names[1]} and {names[2]}"
    return f"{body} {on_ground(scene.ground)}"


def _one(scene: Scene, rng: random.Random) -> str:
    """A single thing, with its size and corner where they must or may be said."""
    thing = scene.things[0]
    if scene.size is None or thing.concept.det != "a" or (scene.purpose == "mmu" and rng.random() < 0.5):
        return spoken_name(thing, rng)
    corner = f" in the {scene.corner} corner" if scene.corner else ""
    return sized_name(thing, scene.size) + corner


def _two(scene: Scene, rng: random.Random) -> str:
    """Two things; "and" and "next to" keep the reading order and are only said side by side."""
    first, second = scene.things
    if scene.bigger is not None and scene.layout == "left_right" and (scene.purpose != "mmu" or rng.random() < 0.4):
        sizes = ("big", "small") if scene.bigger == 0 else ("small", "big")
        return f"{sized_name(first, sizes[0])} next to {sized_name(second, sizes[1])}"
    a, b = spoken_name(first, rng), spoken_name(second, rng)
    if scene.layout == "above_below":
        return rng.choice((f"{a} above {b}", f"{b} below {a}"))
    return rng.choice((f"{a} to the left of {b}", f"{b} to the right of {a}", f"{a} and {b}", f"{a} next to {b}"))


def _three(scene: Scene, rng: random.Random) -> str:
    """Three things in reading order; "between" only in a row."""
    a, b, c = (spoken_name(thing, rng) for thing in scene.things)
    if scene.layout == "row" and rng.random() < 0.4:
        return f"{b} between {a} and {c}"
    return f"{a}, {b} and {c}"


def _framed(scene: Scene, body: str, rng: random.Random) -> str:
    """ "a picture of ...", "a 3D rendering of ..." or the body alone."""
    nouns = {STYLE_NOUNS.get(thing.style) if thing.hand is None else None for thing in scene.things}
    noun = nouns.pop() if len(nouns) == 1 else None
    solid = scene.purpose == "t2i" and noun == STYLE_NOUNS[SOLID_STYLE]
    if noun is not None and (solid or rng.random() < STYLE_SHARE[noun]):
        return f"a {noun} of {body}"
    return f"a picture of {body}" if rng.random() < PICTURE_SHARE else body


def _says_ground(scene: Scene, rng: random.Random) -> bool:
    """Whether the caption names the ground."""
    if scene.purpose == "mmu":
        return rng.random() < GROUND_SHARE
    return not scene.plain_ground or rng.random() < PLAIN_GROUND_SHARE
