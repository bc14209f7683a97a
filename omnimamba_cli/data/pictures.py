"""Items that are pictures: alone for the image tokenizer, or with a caption for the t2i task."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from omnimamba_cli.config import ModelConfig
from omnimamba_cli.data.images import load_image, vq_pixels
from omnimamba_cli.data.records import IMAGE_SUFFIXES, pictures_below
from omnimamba_cli.data.rejects import Bad, Rejects
from omnimamba_cli.data.samples import Blob, Raw, chosen, draws
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
        found = pictures_below(folder)
        if not found:
            raise InputError(f"{folder}: no pictures below it ({', '.join(s[1:] for s in IMAGE_SUFFIXES)})")
        return cls(found, size)

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
    """An item of the t2i task before its codes are known: the ids before them, and uint8 pixels (3 s s)."""

    prefix: list[int]
    pixels: Tensor
    instead_of: tuple[Bad, ...] = ()


class SketchMaker:
    """Pictures with captions to Sketches; a caption at random, or none (caption_dropout), as for codes."""

    def __init__(self, config: ModelConfig, tokenizer: TextTokenizer, *, seed: int = 0) -> None:
        self.config, self.tokenizer, self.seed = config, tokenizer, seed

    def check(self, raw: Raw) -> None:
        """Raises DataError where a sample's words alone rule it out."""
        captions(raw)

    def __call__(self, raw: Raw, position: int) -> Sketch:
        pixels = vq_pixels(raw.open(), self.config.vq.image_size)
        caption = chosen(self.seed, position, 0, captions(raw))
        dropped = draws(self.seed, np.array([position]), 1)[0] < self.config.caption_dropout
        return Sketch(t2i_prefix(self.config, [] if dropped else self.tokenizer.encode(caption)), pixels)


@dataclass
class Captioned:
    """A picture, uint8 (3 s s), and all its captions, as `omnimamba tokenize` writes them."""

    name: str
    captions: list[str]
    pixels: Tensor
    instead_of: tuple[Bad, ...] = ()


class CaptionedMaker:
    """Pictures with captions, whole, for an image tokenizer of so many pixels a side."""

    def __init__(self, size: int) -> None:
        self.size = size

    def check(self, raw: Raw) -> None:
        """Raises DataError where a sample's words alone rule it out."""
        captions(raw)

    def __call__(self, raw: Raw, position: int) -> Captioned:
        said = captions(raw)
        return Captioned(raw.name, said, vq_pixels(raw.open(), self.size))


def captions(raw: Raw) -> list[str]:
    """What a sample's picture is drawn from. Raises DataError for a sample without captions or picture."""
    if raw.captions is None:
        raise DataError("it is a conversation: drawing needs captions")
    if raw.picture is None:
        raise DataError("it has no picture")
    return raw.captions
