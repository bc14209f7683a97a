"""The stages of a picture in `omnimamba caption`: a Job, then Loaded, then an Answer."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from omnimamba_cli.cli.inputs import Picture
from omnimamba_cli.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

    from omnimamba_cli.engine.events import CaptionResult


@dataclass(frozen=True)
class Job:
    """One input of a run: its index, the picture or its error, and the file for its answer."""

    index: int
    picture: Picture | InputError
    path: Path | None = None


@dataclass(frozen=True)
class Loaded:
    """A decoded picture, and the hash of its file if results show it."""

    image: "Image"
    sha256: str | None


class Answer(NamedTuple):
    """A result, and the hash of the picture's file if results show it."""

    result: "CaptionResult"
    sha256: str | None
