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
# Steps of 1/8 are the cells of an image tokenizer's 8 by 8 grid: things that start on a cell are easy to learn.
CANONICAL_GROUPS: dict[int, tuple[Square, ...]] = {
    2: ((0.25, 0.5, 0.47), (0.75, 0.5, 0.47)),
    3: ((0.5, 0.25, 0.47), (0.25, 0.75, 0.47), (0.75, 0.75, 0.47)),
    4: ((0.25, 0.25, 0.47), (0.75, 0.25, 0.47), (0.25, 0.75, 0.47), (0.75, 0.75, 0.47)),
    5: ((0.17, 0.3, 0.315), (0.5, 0.3, 0.315), (0.83, 0.3, 0.315), (0.335, 0.7, 0.315), (0.665, 0.7, 0.315)),
}


def shake(rng: random.Random, squares: tuple[Square, ...]) -> tuple[Square, ...]:
    """Squares moved and scaled by a few percent, all scaled alike."""
    scale = rng.uniform(0.96, 1.01)
    return tuple(
        (x + rng.uniform(-0.012, 0.012), y + rng.uniform(-0.012, 0.012), side * scale) for x, y, side in squares
    )


def canonical_one(size: str | None, corner: str | None) -> tuple[Square, ...]:
    """A single thing: in the middle and large, unless the caption will say otherwise."""
    if corner is not None:
        return ((*CORNERS[corner], 0.42),)
    return ((0.5, 0.5, {None: 0.84, "small": 0.42, "big": 0.98}[size]),)


def canonical_two(layout: str, big: int | None) -> tuple[Square, ...]:
    """Two things side by side or one above the other; `big` is the place of the bigger one, if one is."""
    sides = (0.47, 0.47) if big is None else ((0.6, 0.28) if big == 0 else (0.28, 0.6))
    margin = (1 - sum(sides)) / 3
    first, second = margin + sides[0] / 2, 1 - margin - sides[1] / 2
    if layout == "left_right":
        return ((first, 0.5, sides[0]), (second, 0.5, sides[1]))
    return ((0.5, first, sides[0]), (0.5, second, sides[1]))


def canonical_row() -> tuple[Square, ...]:
    """Three things in a row."""
    return ((0.17, 0.5, 0.315), (0.5, 0.5, 0.315), (0.83, 0.5, 0.315))


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
