"""What a model in training may see, and what is kept to test it.

Everything here is decided by a hash of a text key (concept ids, colour names), so it depends on no order,
no seed, no version of Python, and never moves. A key is "held out" when its hash falls in the lowest 10 %.

- unseen_scenes:  pictures, pairs and colours as in training, but scenes from another random stream.
                  Asks: does the model know the world it was shown?
- unseen_pairs:   10 % of the unordered pairs of concepts never stand in one scene in training; and 10 % of
                  the pairs (concept, colour) never occur, once for tints ("a purple crab") and once for
                  grounds ("a crab on a purple background"). White grounds are always allowed, or a tenth of
                  the concepts could never be drawn plainly. Scenes of this split hold at least one such pair.
                  Asks: does it compose what it knows?
- unseen_drawing: for 10 % of the concepts no Twemoji picture is trained (other sets' pictures are).
                  Scenes of this split show only those pictures.
                  Asks: does it know a thing by another hand in a style it knows?
- unseen_style:   the whole set Streamline. No part of any model, not even the vision tower or the image
                  tokenizer, may be trained on it.
                  Asks: does it know a thing in a style it never saw?

Man and woman of one role look nearly alike, so either answer is right (see `names.accepted_names`).
"""

import hashlib
from functools import lru_cache
from itertools import combinations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scenes import Scene

TRAIN = "train"
SPLITS = ("unseen_scenes", "unseen_pairs", "unseen_drawing", "unseen_style")
UNSEEN_STYLES = frozenset({"streamline"})
DRAWING_STYLE = "twemoji"
HELD_OUT_SHARE = 0.10


def hash_unit(key: str) -> float:
    """A stable number in [0, 1) for a text key."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64


def unseen_pair(a: str, b: str) -> bool:
    """Whether two concept ids never stand in one scene in training; the order does not matter."""
    low, high = sorted((a, b))
    return hash_unit(f"pair:{low}+{high}") < HELD_OUT_SHARE


@lru_cache(maxsize=65536)
def unseen_tint(concept: str, colour: str) -> bool:
    """Whether a concept is never tinted with a colour in training."""
    return hash_unit(f"tint:{concept}+{colour}") < HELD_OUT_SHARE


@lru_cache(maxsize=65536)
def unseen_ground(concept: str, colour: str) -> bool:
    """Whether a concept never stands on a ground of that colour in training."""
    return colour != "white" and hash_unit(f"ground:{concept}+{colour}") < HELD_OUT_SHARE


@lru_cache(maxsize=4096)
def unseen_drawing(concept: str) -> bool:
    """Whether no Twemoji picture of a concept is trained."""
    return hash_unit(f"drawing:{concept}") < HELD_OUT_SHARE


def held_out_picture(concept: str, style: str) -> bool:
    """Whether a picture is never trained."""
    return style in UNSEEN_STYLES or (style == DRAWING_STYLE and unseen_drawing(concept))


def composes_unseen(scene: "Scene") -> bool:
    """Whether a scene holds a pair of concepts, or of concept and colour, that is never trained."""
    ids = sorted({thing.concept.id for thing in scene.things})
    return (
        any(unseen_ground(id_, scene.ground) for id_ in ids)
        or any(thing.tint is not None and unseen_tint(thing.concept.id, thing.tint) for thing in scene.things)
        or any(unseen_pair(a, b) for a, b in combinations(ids, 2))
    )


def belongs(scene: "Scene", split: str) -> bool:
    """Whether a scene may occur in a split ("train" or one of SPLITS)."""
    held = [held_out_picture(thing.concept.id, thing.style) for thing in scene.things]
    styles = {thing.style for thing in scene.things}
    if split == "unseen_pairs":
        return not any(held) and composes_unseen(scene)
    if composes_unseen(scene):
        return False
    if split == "unseen_drawing":
        return all(held) and styles == {DRAWING_STYLE}
    if split == "unseen_style":
        return styles <= UNSEEN_STYLES
    if split not in (TRAIN, "unseen_scenes"):
        raise ValueError(f"no split {split!r}: use {TRAIN} or one of {', '.join(SPLITS)}")
    return not any(held)
