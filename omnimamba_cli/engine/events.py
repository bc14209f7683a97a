"""What a session gives: answers, pieces of answers, pictures, and how far a drawing is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from PIL import Image

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class TextEvent:
    """A piece of an answer as it is written; the last one is finished and says why."""

    text: str
    finished: bool = False
    finish_reason: FinishReason | None = None
    tokens: int = 0  # so far, the end-of-text id included


@dataclass(frozen=True)
class CaptionResult:
    """A whole answer."""

    text: str
    finish_reason: FinishReason
    tokens: int
    seconds: float  # of the batch it was part of


@dataclass(frozen=True)
class ImageEvent:
    """A finished picture."""

    index: int
    prompt: str
    seed: int
    image: Image.Image
    seconds: float  # of the batch it was part of


@dataclass(frozen=True)
class DrawingEvent:
    """How far a batch of pictures is, now and then while it is drawn."""

    index: int  # of its first picture
    pictures: int  # in the batch
    done: int  # codes drawn of each picture
    codes: int  # codes of a whole picture
    preview: Callable[[], Image.Image]  # decodes the first picture as far as it is; not free
