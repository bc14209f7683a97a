"""Prompts to judge a model's drawings by, in groups, each with the one scene that it means."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

from captions import caption
from pictures import Pictures
from scenes import SOLID_STYLE, Scene, sample_scene
from splits import unseen_ground, unseen_pair, unseen_tint

# Names of one thing that also say several of another, or another one tinted.
TWO_MEANINGS = ("two mugs of beer", "two pink hearts", "two raised hands", "black cat", "black bird", "red envelope")


@dataclass(frozen=True, kw_only=True)
class Group:
    """Prompts of one sort."""

    name: str
    kind: str  # of scenes.KINDS
    split: str  # "unseen_scenes", or "unseen_pairs" for what is never trained together
    wanted: Callable[[Scene], bool]
    words: tuple[str, ...] = ("",)  # one of them is in the prompt


def _own_colours(scene: Scene) -> bool:
    """Whether nothing is said of colour, style or size of a single thing."""
    thing = scene.things[0]
    return scene.size is None and thing.tint is None and thing.style != SOLID_STYLE


def _of_one(name: str, wanted: Callable[[Scene], bool], split: str = "unseen_scenes") -> Group:
    return Group(name=f"one, {name}", kind="one", split=split, wanted=wanted)


def _never_met(scene: Scene) -> bool:
    return any(unseen_pair(a.concept.id, b.concept.id) for a, b in combinations(scene.things, 2))


def _of_a_kind(n: int, word: str) -> Group:
    return Group(name=f"{word} of a kind", kind="count", split="unseen_scenes", wanted=lambda s: len(s.things) == n)


LEFT, JOINED = ("to the left of", "to the right of"), (" and ", "next to")
GROUPS = (
    _of_one("plain ground", lambda s: s.plain_ground and _own_colours(s)),
    _of_one("named ground", lambda s: not s.plain_ground and _own_colours(s)),
    _of_one(
        "unseen ground", lambda s: _own_colours(s) and unseen_ground(s.things[0].concept.id, s.ground), "unseen_pairs"
    ),
    _of_one("tinted", lambda s: s.things[0].tint is not None and s.size is None),
    _of_one(
        "unseen tint",
        lambda s: s.things[0].tint is not None and unseen_tint(s.things[0].concept.id, s.things[0].tint),
        "unseen_pairs",
    ),
    _of_one("3D rendering", lambda s: s.things[0].style == SOLID_STYLE),
    _of_one("small or big", lambda s: s.size is not None and s.corner is None),
    _of_one("in a corner", lambda s: s.corner is not None),
    Group(name="two, and", kind="two", split="unseen_scenes", wanted=lambda s: s.bigger is None, words=JOINED),
    Group(name="two, unseen pair", kind="two", split="unseen_pairs", wanted=_never_met),
    Group(name="two, big and small", kind="two", split="unseen_scenes", wanted=lambda s: s.bigger is not None),
    Group(name="two, left or right of", kind="two", split="unseen_scenes", wanted=lambda s: True, words=LEFT),
    Group(
        name="two, above or below", kind="two", split="unseen_scenes", wanted=lambda s: True, words=("above", "below")
    ),
    *(_of_a_kind(n, word) for n, word in enumerate(("two", "three", "four", "five"), start=2)),
    Group(name="three in a row", kind="three", split="unseen_scenes", wanted=lambda s: True),
)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A prompt and the one drawing that it means."""

    group: str
    prompt: str
    scene: Scene


def ask(pictures: Pictures, n: int, seed: int) -> list[Asked]:
    """n prompts of each group; the same for the same seed."""
    asked = []
    for group in GROUPS:
        rng = random.Random(f"picturebook/judge/{seed}/{group.name}")
        found: dict[str, Asked] = {}
        while len(found) < n:
            scene = sample_scene(rng, pictures, group.split, purpose="t2i", kind=group.kind)
            prompt = caption(scene, rng)
            if group.wanted(scene) and any(word in prompt for word in group.words) and _one_meaning(prompt, scene):
                found.setdefault(prompt, Asked(group=group.name, prompt=prompt, scene=scene))
        asked += found.values()
    return asked


def _one_meaning(prompt: str, scene: Scene) -> bool:
    """Whether the prompt says each thing's own name: an alias ("a dog") may be a dog or a dog's face."""
    called = [thing.concept.plural if scene.kind == "count" else thing.concept.np for thing in scene.things]
    return all(name in prompt for name in called) and not any(words in prompt for words in TWO_MEANINGS)
