"""What a session gives back: answers, pieces of answers, and pictures."""

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
    """A batch of pictures that is being drawn, now and then while it is."""

    index: int  # of its first picture
    pictures: int  # in the batch
    done: int  # codes of each picture
    codes: int  # of a whole picture
    preview: Callable[[], Image.Image]  # the first picture (of candidates, the first one) as far as it is; works for it
