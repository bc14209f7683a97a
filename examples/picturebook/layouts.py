"""Where things stand: squares (centre x, centre y, side) in parts of the canvas, 0 to 1.

Canonical layouts are for drawing: one plain way to draw each caption, so that a small model can learn it.
Free layouts are for looking: every place and size that keeps the caption true.
"""

import random

Square = tuple[float, float, float]  # centre x, centre y, side
CORNERS: dict[str, tuple[float, float]] = {
    "top left": (0.25, 0.25),
    "top right": (0.75, 0.25),
    "bottom left": (0.25, 0.75),
    "bottom right": (0.75, 0.75),
}
# One code of the image tokenizer covers a 16th. Things of one size lie whole codes apart, wherever they stand: so they
# are nearly the same codes in every place, and what is learnt in one holds in the others.
ONE, HALF, THIRD = 0.875, 0.46875, 0.296875  # sides: 112, 60 and 38 pixels of 128
CANONICAL_GROUPS: dict[int, tuple[Square, ...]] = {
    2: ((0.25, 0.5, HALF), (0.75, 0.5, HALF)),
    3: ((0.5, 0.25, HALF), (0.25, 0.75, HALF), (0.75, 0.75, HALF)),
    4: ((0.25, 0.25, HALF), (0.75, 0.25, HALF), (0.25, 0.75, HALF), (0.75, 0.75, HALF)),
    5: (
        *((0.1875, 0.3125, THIRD), (0.5, 0.3125, THIRD), (0.8125, 0.3125, THIRD)),
        *((0.3125, 0.6875, THIRD), (0.6875, 0.6875, THIRD)),
    ),
}


def canonical_one(size: str | None, corner: str | None) -> tuple[Square, ...]:
    """A single thing: in the middle and large, unless the caption will say otherwise."""
    if corner is not None:
        return ((*CORNERS[corner], HALF),)
    return ((0.5, 0.5, {None: ONE, "small": HALF, "big": 1.0}[size]),)


def canonical_two(layout: str, big: int | None) -> tuple[Square, ...]:
    """Two things side by side or one above the other; `big` is the place of the bigger one, if one is."""
    first, second = {None: ((0.25, HALF), (0.75, HALF)), 0: ((0.3125, 0.59375), (0.8125, 0.28125))}.get(
        big, ((0.1875, 0.28125), (0.6875, 0.59375))
    )
    if layout == "left_right":
        return ((first[0], 0.5, first[1]), (second[0], 0.5, second[1]))
    return ((0.5, first[0], first[1]), (0.5, second[0], second[1]))


def canonical_row() -> tuple[Square, ...]:
    """Three things in a row."""
    return ((0.1875, 0.5, THIRD), (0.5, 0.5, THIRD), (0.8125, 0.5, THIRD))


def free_one(rng: random.Random) -> tuple[Square, ...]:
    """A single thing of any size anywhere, often near the middle."""
    side = rng.uniform(0.3, 0.95)
    if rng.random() < 0.4:
        room = min(0.05, (1 - side) / 2)
        return ((0.5 + rng.uniform(-room, room), 0.5 + rng.uniform(-room, room), side),)
    return ((_inside(rng, side), _inside(rng, side), side),)


def free_line(rng: random.Random, n: int, along_x: bool) -> tuple[Square, ...]:
    """Things along one axis with gaps between them, a little off the line."""
    top = {2: 0.52, 3: 0.33}[n]
    sides = [rng.uniform(top * 0.55, top) for _ in range(n)]
    if n == 2 and rng.random() < 0.35:
        sides = rng.sample([rng.uniform(0.46, 0.6), rng.uniform(0.22, 0.29)], 2)
    if sum(sides) > 0.99:
        sides = [side * 0.99 / sum(sides) for side in sides]
    # The empty length is cut at random places: before, between and behind the things.
    cuts = sorted(rng.random() for _ in range(n))
    free = 1 - sum(sides)
    middle = rng.uniform(0.35, 0.65)
    squares = []
    for place, side in enumerate(sides):
        along = cuts[place] * free + sum(sides[:place]) + side / 2
        # Off the line by less than the distance along it, so that "left of" stays the plain word.
        across = min(1 - side / 2, max(side / 2, middle + rng.uniform(-0.09, 0.09)))
        squares.append((along, across, side) if along_x else (across, along, side))
    return tuple(squares)


def free_scatter(rng: random.Random, n: int) -> tuple[Square, ...]:
    """Things in cells of a grid, each at its own place and size in its cell, in reading order."""
    columns = 2 if n <= 4 and rng.random() < 0.6 else 3
    cell = 1 / columns
    squares = []
    for number in sorted(rng.sample(range(columns * columns), n)):
        side = cell * rng.uniform(0.68, 0.98)
        row, column = divmod(number, columns)
        x, y = column * cell + _inside(rng, side / cell) * cell, row * cell + _inside(rng, side / cell) * cell
        squares.append((x, y, side))
    return tuple(squares)


def _inside(rng: random.Random, side: float) -> float:
    """A centre that keeps a square of that side within 0 to 1."""
    return rng.uniform(side / 2, 1 - side / 2)
