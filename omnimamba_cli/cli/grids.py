"""`generate --grid`: all pictures of a run on one sheet, in one file."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from omnimamba_cli.cli import targets
from omnimamba_cli.cli.options import FormatChoice
from omnimamba_cli.cli.targets import Target

if TYPE_CHECKING:
    from omnimamba_cli.engine.events import ImageEvent


def target(prompts: Sequence[str], seed: int, output: str | None, format_choice: FormatChoice | None) -> Target:
    """The file of the sheet, named as a single picture of the first prompt would be."""
    return targets.plan(prompts[:1], 1, seed, output, format_choice)[0]


def pictures(prompts: Sequence[str], count: int, seed: int) -> list[Target]:
    """What is drawn on the sheet: n of each prompt; picture i has seed + i, as without --grid."""
    wanted = [prompt for prompt in prompts for _ in range(count)]
    return [Target(prompt, seed + i, None, "png") for i, prompt in enumerate(wanted)]


def gathered(
    drawn: "Iterator[tuple[Target, ImageEvent]]", sheet: Target | None
) -> "Iterator[tuple[Target, ImageEvent]]":
    """The pictures as they come, or the sheet of all of them when the last one is there."""
    if sheet is None:
        yield from drawn
        return
    from omnimamba_cli.engine.events import ImageEvent
    from omnimamba_cli.engine.sheets import grid_sheet

    start = time.perf_counter()
    events = [event for _, event in drawn]
    prompts = list(dict.fromkeys(event.prompt for event in events))
    # of one prompt its seeds tell the pictures apart
    labels = [f"{event.prompt}\n{event.seed}" if len(prompts) > 1 else str(event.seed) for event in events]
    image = grid_sheet([event.image for event in events], labels, cell_px=max(events[0].image.size))
    every = "\n".join(prompts)
    yield replace(sheet, prompt=every), ImageEvent(0, every, sheet.seed, image, time.perf_counter() - start)
