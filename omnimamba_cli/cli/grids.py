"""`generate --grid`: all pictures of a run on one sheet, in one file."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from omnimamba_cli.cli import targets
from omnimamba_cli.cli.inputs import Wish
from omnimamba_cli.cli.options import FormatChoice
from omnimamba_cli.cli.targets import Target
from omnimamba_cli.errors import InputError

if TYPE_CHECKING:
    from omnimamba_cli.engine.events import ImageEvent


def plan(
    wishes: Sequence[Wish | InputError], count: int, seed: int, output: str | None, format_choice: FormatChoice | None
) -> tuple[Target, list[Target | InputError]]:
    """The file of the sheet, named as a single picture of the first prompt would be, and what is drawn on it.

    Picture i has seed + i, as without --grid. Raises UsageError, InputError for a file that cannot be named.
    """
    first = next((wish for wish in wishes if isinstance(wish, Wish)), None)
    if first is None:
        raise next((wish for wish in wishes if isinstance(wish, InputError)), InputError("there is nothing to draw"))
    sheet = next(targets.plan([Wish(first.prompt)], 1, seed, output, format_choice))
    if isinstance(sheet, InputError):
        raise sheet
    drawn: list[Target | InputError] = []
    for number, wish in enumerate(wishes):
        if isinstance(wish, InputError):
            drawn.append(wish)
            continue
        start = seed + number * count if wish.seed is None else wish.seed
        drawn += [Target(wish.prompt, start + i, None, "png") for i in range(count)]
    return sheet, drawn


def gathered(
    drawn: "Iterator[tuple[Target, ImageEvent] | InputError]", sheet: Target | None
) -> "Iterator[tuple[Target, ImageEvent] | InputError]":
    """The pictures as they come, or the sheet of all of them when the last one is there."""
    if sheet is None:
        yield from drawn
        return
    from omnimamba_cli.engine.events import ImageEvent
    from omnimamba_cli.engine.sheets import grid_sheet

    start = time.perf_counter()
    events: list[ImageEvent] = []
    for found in drawn:
        if isinstance(found, InputError):
            yield found
        else:
            events.append(found[1])
    if not events:
        return
    prompts = list(dict.fromkeys(event.prompt for event in events))
    # of one prompt its seeds tell the pictures apart
    labels = [f"{event.prompt}\n{event.seed}" if len(prompts) > 1 else str(event.seed) for event in events]
    image = grid_sheet([event.image for event in events], labels, cell_px=max(events[0].image.size))
    every = "\n".join(prompts)
    yield replace(sheet, prompt=every), ImageEvent(0, every, sheet.seed, image, time.perf_counter() - start)
