"""What an evaluation yields: steps, and at the end the result, as data, as a table and as contact sheets."""

from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from omnimamba_cli.data.reading import load_image
from omnimamba_cli.engine.scoring import Tally
from omnimamba_cli.engine.sheets import grid_sheet

NAMING = "name"  # the type of "what is here?"
CYCLE = "cycle accuracy: the model that drew a picture is asked what it shows; nobody outside judges"
FAILURES_SHOWN = 48  # on the sheet, taken from the splits in turn

Facts = dict[str, Any]  # Any: a JSON object
Stage = Literal["answering", "drawing", "judging"]


@dataclass(frozen=True)
class EvaluationStep:
    """How many answers, drawings or judgements were made since the last step."""

    stage: Stage
    done: int
    total: int  # of the whole evaluation


@dataclass(frozen=True)
class Failure:
    """A picture that was named wrongly."""

    split: str
    image: Path
    answer: str
    truth: str


@dataclass
class EvaluationResult:
    """What was measured, and on what."""

    facts: Facts  # model, data, settings, versions, date
    answers: Tally = field(default_factory=Tally)  # by split and type of question
    cycle: Tally = field(default_factory=Tally)  # by split and kind of prompt, every check
    cycle_names: Tally = field(default_factory=Tally)  # the same, "what is here?" alone
    failures: list[Failure] = field(default_factory=list)
    drawn: list[tuple[Image.Image, str]] = field(default_factory=list)  # pictures and their prompts
    seconds: float = 0.0

    @property
    def sheet(self) -> Image.Image | None:
        """The drawn pictures with their prompts; None when nothing was drawn."""
        return grid_sheet(*zip(*self.drawn, strict=True)) if self.drawn else None

    @property
    def failure_sheet(self) -> Image.Image | None:
        """Pictures that were named wrongly, with what was said and what is right; None when there are none."""
        shown = _in_turn(self.failures, FAILURES_SHOWN)
        if not shown:
            return None
        labels = [f"said: {f.answer}\nis: {f.truth}" for f in shown]
        return grid_sheet([load_image(f.image) for f in shown], labels)

    def to_dict(self) -> Facts:
        """Everything but the pictures, as plain data."""
        names = {group: self.answers.total(group, NAMING).to_dict() for group in self.answers.groups}
        return {
            **self.facts,
            "seconds": round(self.seconds, 3),
            "naming": {**names, "all": self.answers.total(item=NAMING).to_dict()},
            "answering": _by_group(self.answers),
            "drawing": None
            if not self.drawn
            else {
                "metric": CYCLE,
                "pictures": len(self.drawn),
                "checks": _by_group(self.cycle),
                "naming": _by_group(self.cycle_names),
            },
        }

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Headers and rows for people: splits as columns, types of question and kinds of drawing as rows."""
        groups = list(dict.fromkeys(self.answers.groups + self.cycle.groups))

        def row(label: str, tally: Tally, item: str | None) -> list[str]:
            scores = [*(tally.total(group, item) for group in groups), tally.total(item=item)]
            return [label, *map(str, scores), str(scores[-1].asked)]

        rows = [row(item, self.answers, item) for item in _ordered(self.answers)]
        rows.append(row("all questions", self.answers, None))
        if self.drawn:
            rows += [row(f"cycle accuracy: {item}", self.cycle, item) for item in _ordered(self.cycle)]
            rows.append(row("cycle accuracy: all", self.cycle, None))
            rows.append(row("cycle accuracy: names alone", self.cycle_names, None))
        return ["", *groups, "all", "asked"], rows


def _by_group(tally: Tally) -> Facts:
    """Scores by split, each in all and by type, and those of all splits."""

    def scores(group: str | None) -> Facts:
        by_type = {item: tally.total(group, item) for item in _ordered(tally)}
        asked = {item: score.to_dict() for item, score in by_type.items() if score.asked}
        return {**tally.total(group).to_dict(), "by_type": asked}

    return {**{group: scores(group) for group in tally.groups}, "all": scores(None)}


def _ordered(tally: Tally) -> list[str]:
    """Naming first, the other types by name: the same order whatever was asked first."""
    return sorted(tally.items, key=lambda item: (item != NAMING, item))


def _in_turn(failures: list[Failure], most: int) -> list[Failure]:
    """The first of each split, then the second of each, and so on; `most` in all."""
    by_split: dict[str, list[Failure]] = {}
    for failure in failures:
        by_split.setdefault(failure.split, []).append(failure)
    rounds = zip_longest(*by_split.values())
    return [failure for row in rounds for failure in row if failure is not None][:most]
