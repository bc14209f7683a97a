"""Samples as they stand in data files (Raw), and the data set that makes training items of them on demand (Samples).

A sample that turns out bad is replaced by another one, drawn at random by the position in the run alone: the batch
keeps its size, and stays the same in a resumed run and for any number of workers and processes.
"""

import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from omnimamba_cli.config import BAD_SHARE
from omnimamba_cli.data.files import DataFile
from omnimamba_cli.data.reading import image_size, load_image
from omnimamba_cli.data.records import Record, captions_of, image_of, labels_of, read_records, root_of, turns_of
from omnimamba_cli.data.rejects import Bad, Rejects
from omnimamba_cli.data.sequences import Turn
from omnimamba_cli.errors import InputError

TRIES = 10  # samples that are tried before a row of a batch is given up; 1: none is replaced
# streams of `draws`, one for each thing that is drawn, so that they are independent; replacements use 16, 17, ...
CAPTION, DROPOUT, ANSWER, REPLACEMENT = 0, 1, 2, 16


@dataclass(frozen=True)
class Raw:
    """A sample as it was read: its name, its picture (a path, a file's bytes, or none), and turns or captions."""

    name: str
    picture: Path | bytes | None
    turns: list[Turn] | None
    captions: list[str] | None

    def open(self) -> Image.Image:
        """Its picture as RGB. Raises InputError where it has none or it cannot be read."""
        if self.picture is None:
            raise InputError("it has no picture")
        return load_image(self.picture, name=self.name if isinstance(self.picture, bytes) else None)

    def size(self) -> tuple[int, int]:
        """Its picture's width and height, read from the head of the file. Raises InputError as open does."""
        if self.picture is None:
            raise InputError("it has no picture")
        return image_size(self.picture, name=self.name if isinstance(self.picture, bytes) else None)


class Made(Protocol):
    """A training item; `instead_of` are the bad samples whose place it takes."""

    instead_of: tuple[Bad, ...]


class Maker(Protocol):
    """Makes a training item of a sample at a position of the run; random choices depend on the position alone.

    Raises InputError (DataError) with the reason where the sample cannot be used.
    """

    def check(self, raw: Raw) -> None:
        """Raises DataError where a sample's words alone rule it out."""
        ...

    def __call__(self, raw: Raw, position: int) -> Any:  # Any: Made, a class of the maker's own
        ...


def make(maker: Maker, raw: Raw, position: int) -> Any:  # Any: Made | Bad
    """The item, or what is wrong with the sample."""
    try:
        return maker(raw, position)
    except InputError as error:
        return Bad(raw.name, error.message)


def problem(maker: Maker, raw: Raw) -> Bad | None:
    """What is wrong with a sample, as far as it shows without decoding its picture; None for a good one."""
    try:
        maker.check(raw)
        if raw.picture is not None:
            raw.size()
    except InputError as error:
        return Bad(raw.name, error.message)
    return None


class Samples(torch.utils.data.Dataset[Any]):  # Any: Made | Bad
    """The samples of files and folders. Their text is in memory, in one block that worker processes share."""

    def __init__(
        self,
        paths: Sequence[Path],
        image_root: Path | None,
        maker: Maker,
        *,
        seed: int = 0,
        limit: float = BAD_SHARE,
        tries: int = TRIES,
    ) -> None:
        self.maker, self.seed, self.tries = maker, seed, tries
        self.rejects = Rejects(limit)
        self.roots = [str(root_of(path, image_root)) for path in paths]
        counts = [0] * len(paths)  # samples of each
        self.blob = Blob(self._read(paths, counts))
        if not len(self.blob):
            raise self.rejects.none_left(paths)
        self.rejects.check(len(self.blob) + len(self.rejects.reasons))
        self.files = [DataFile.opened(path, count) for path, count in zip(paths, counts, strict=True)]

    def _read(self, paths: Sequence[Path], counts: list[int]) -> Iterator[bytes]:
        for number, (path, label) in enumerate(zip(paths, labels_of(paths), strict=True)):
            for name, record in read_records(path, self.rejects, label):
                try:
                    image = image_of(record)
                    packed = {"n": name, "r": number, "i": image, **words_of(record, image is not None)}
                except ValueError as error:
                    self.rejects.add(name, str(error))
                    continue
                counts[number] += 1
                yield json.dumps(packed).encode()

    def __len__(self) -> int:
        return len(self.blob)

    def raw(self, index: int) -> Raw:
        """A sample as it lies in its file."""
        record = json.loads(self.blob[index])
        picture = None if record["i"] is None else Path(self.roots[record["r"]]) / record["i"]
        turns = [(question, answer) for question, answer in record["t"]] if "t" in record else None
        return Raw(record["n"], picture, turns, record.get("c"))

    def raws(self) -> Iterator[Raw]:
        """Every sample as it lies in the files."""
        return (self.raw(index) for index in range(len(self)))

    def in_order(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Keys of the samples start to end as they lie in the files."""
        return ((i, i) for i in range(start, end))

    def __getitem__(self, key: tuple[int, int]) -> Any:  # Any: Made | Bad
        """The item of (position in the run, index); in place of a bad one, another one."""
        position, index = key
        bad: list[Bad] = []
        for attempt in range(self.tries):
            item = make(self.maker, self.raw(index), position)
            if not isinstance(item, Bad):
                item.instead_of = tuple(bad)
                return item
            bad.append(item)
            index = int(draws(self.seed, np.array([position]), REPLACEMENT + attempt)[0] * len(self))
        return Bad(bad[0].name, bad[0].reason, also=tuple(bad[1:]))


def words_of(record: Record, shown: bool) -> dict[str, Any]:  # Any: lists of strings, or of pairs of them
    """A record's text under short names: turns "t" or captions "c". `shown`: it has a picture.

    Raises ValueError where there is none, or captions without a picture.
    """
    if "conversations" in record:
        return {"t": turns_of(record)}
    captions = captions_of(record)
    if not shown:
        raise ValueError("it has codes, which are for t2i" if "tokens" in record else "it has captions but no picture")
    return {"c": captions}


class Blob:
    """Many byte strings end to end in one array, which worker processes share: Python objects they would copy."""

    def __init__(self, items: Iterable[bytes]) -> None:
        data, offsets = bytearray(), array("q", [0])
        for item in items:
            data += item
            offsets.append(len(data))
        self.data = np.frombuffer(bytes(data), np.uint8)
        self.offsets = np.frombuffer(offsets, np.int64)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> bytes:
        return self.data[self.offsets[index] : self.offsets[index + 1]].tobytes()


def draws(seed: int, positions: np.ndarray, stream: int) -> np.ndarray:
    """A uniform number in [0, 1) for each position: the same whatever the batch, process or restart."""
    with np.errstate(over="ignore"):
        x = positions.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x ^= np.uint64((seed * 0x2545F4914F6CDD1D + stream * 0xD1342543DE82EF95) % 2**64)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
        x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)).astype(np.float64) / 2.0**53


def chosen(seed: int, position: int, stream: int, captions: Sequence[str]) -> str:
    """One of a sample's captions, drawn by the position."""
    return captions[int(draws(seed, np.array([position]), stream)[0] * len(captions))]
