"""What a picture is while it goes through `omnimamba caption`: a job, then read, then answered."""

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
    """One input of a run: its place in it, the picture or what is wrong with it, and the file its answer goes to."""

    index: int
    picture: Picture | InputError
    path: Path | None = None


@dataclass(frozen=True)
class Loaded:
    """A picture that has been read: decoded, and the hash of its file where results tell it."""

    image: "Image"
    sha256: str | None


class Answer(NamedTuple):
    """A result, and the hash of the picture's file where results tell it."""

    result: "CaptionResult"
    sha256: str | None
