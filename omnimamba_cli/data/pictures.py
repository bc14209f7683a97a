"""Items with pictures: alone for the image tokenizer, with a caption for t2i, with all captions for `tokenize`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from omnimamba_cli.config import ModelConfig
from omnimamba_cli.data.images import vq_pixels
from omnimamba_cli.data.reading import load_image
from omnimamba_cli.data.records import pictures_below
from omnimamba_cli.data.rejects import Bad, Rejects
from omnimamba_cli.data.samples import CAPTION, DROPOUT, Blob, Raw, chosen, draws
from omnimamba_cli.data.sequences import t2i_prefix
from omnimamba_cli.data.tokenizer import TextTokenizer
from omnimamba_cli.errors import DataError, InputError


class Pictures(torch.utils.data.Dataset[Tensor | Bad]):
    """Pictures by path, as uint8 (3 s s) for the image tokenizer."""

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        self.paths, self.size = Blob(os.fsencode(p) for p in paths), size
        self.rejects = Rejects()

    @classmethod
    def below(cls, folder: Path, size: int) -> "Pictures":
        """Every picture below a folder, in the order of their paths. Raises InputError without any."""
        return cls(pictures_below(folder), size)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: tuple[int, int]) -> Tensor | Bad:
        """key is (position in the run, index)."""
        path = Path(os.fsdecode(self.paths[key[1]]))
        try:
            return vq_pixels(load_image(path), self.size)
        except InputError as error:
            return Bad(str(path), error.message)


@dataclass
class Sketch:
    """An item of the t2i task before its codes are known: prefix ids, and uint8 pixels (3 s s)."""

    prefix: list[int]
    pixels: Tensor
    instead_of: tuple[Bad, ...] = ()


class SketchMaker:
    """Makes Sketches of pictures with captions. A caption is drawn at random or left out, as DrawnCodes does."""

    def __init__(self, config: ModelConfig, tokenizer: TextTokenizer, *, seed: int = 0) -> None:
        self.config, self.tokenizer, self.seed = config, tokenizer, seed

    def check(self, raw: Raw) -> None:
        """Raises DataError where a sample's words alone rule it out."""
        captions(raw)

    def __call__(self, raw: Raw, position: int) -> Sketch:
        pixels = vq_pixels(raw.open(), self.config.vq.image_size)
        caption = chosen(self.seed, position, CAPTION, captions(raw))
        dropped = draws(self.seed, np.array([position]), DROPOUT)[0] < self.config.caption_dropout
        return Sketch(t2i_prefix(self.config, [] if dropped else self.tokenizer.encode(caption)), pixels)


@dataclass
class Captioned:
    """A picture, uint8 (3 s s), and all its captions, as `omnimamba tokenize` writes them."""

    name: str
    captions: list[str]
    pixels: Tensor
    instead_of: tuple[Bad, ...] = ()


class CaptionedMaker:
    """Makes Captioned items of pictures with captions, for an image tokenizer of so many pixels a side."""

    def __init__(self, size: int) -> None:
        self.size = size

    def check(self, raw: Raw) -> None:
        """Raises DataError where a sample's words alone rule it out."""
        captions(raw)

    def __call__(self, raw: Raw, position: int) -> Captioned:
        said = captions(raw)
        return Captioned(raw.name, said, vq_pixels(raw.open(), self.size))


def captions(raw: Raw) -> list[str]:
    """A sample's captions. Raises DataError for a sample that has none, or no picture: it cannot be drawn."""
    if raw.captions is None:
        raise DataError("it is a conversation: drawing needs captions")
    if raw.picture is None:
        raise DataError("it has no picture")
    return raw.captions
