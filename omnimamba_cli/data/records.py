"""Data files read record by record, what is wrong with them counted, and many of them held in little memory."""

import json
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from omnimamba_cli.data.sequences import Turn
from omnimamba_cli.errors import DataError, InputError

Record = dict[str, Any]  # Any: JSON
BAD_SHARE = 0.05


@dataclass
class Rejects:
    """Samples left out: name -> why."""

    limit: float = BAD_SHARE
    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, reason: str) -> None:
        """Count a sample; one that comes again in a later epoch counts once."""
        self.reasons.setdefault(name, reason)

    def check(self, seen: int) -> None:
        """Raises DataError when more than the limit of `seen` samples were bad."""
        if len(self.reasons) > self.limit * seen:
            name, reason = next(iter(self.reasons.items()))
            raise DataError(
                f"{len(self.reasons)} of {seen} samples are bad, more than {self.limit:.0%}; first: {name}: {reason}",
                hint="repair the data, or check --image-root",
            )


class Blob:
    """Many byte strings end to end in one array, which worker processes share; a million Python objects they copy."""

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


def read_records(path: Path, rejects: Rejects) -> Iterator[tuple[str, Record]]:
    """(name, object) of a JSON array or of JSON lines; one object in memory at a time.

    A malformed line is a bad sample. Raises DataError for a malformed array, InputError for an unreadable file.
    """
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            start = file.read(1)
            while start and (start.isspace() or start == "\ufeff"):
                start = file.read(1)
            file.seek(0)
            items = _array(path, file.read()) if start == "[" else _lines(path, file, rejects)
            yield from items
    except OSError as error:
        raise InputError(f"{path}: {(error.strerror or str(error)).lower()}") from None


def _lines(path: Path, lines: Iterable[str], rejects: Rejects) -> Iterator[tuple[str, Record]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name = f"{path.name}:{number}"
        try:
            value = json.loads(line)
        except ValueError as error:
            rejects.add(name, f"no valid JSON ({error})")
            continue
        if isinstance(value, dict):
            yield name, value
        else:
            rejects.add(name, "no JSON object")


def _array(path: Path, text: str) -> Iterator[tuple[str, Record]]:
    decoder = json.JSONDecoder()
    place, number = text.index("[") + 1, 0
    while True:
        while text[place : place + 1].isspace() or text[place : place + 1] == ",":
            place += 1
        if text[place : place + 1] == "]":
            return
        number += 1
        try:
            value, place = decoder.raw_decode(text, place)
        except ValueError as error:
            raise DataError(f"{path} is no valid JSON array: item {number}: {error}") from None
        if not isinstance(value, dict):
            raise DataError(f"{path}: item {number} is no JSON object")
        yield f"{path.name}[{number}]", value


def captions_of(record: Record) -> list[str]:
    found = record.get("captions", record.get("caption"))
    captions = [found] if isinstance(found, str) else found
    if not isinstance(captions, list) or not captions or not all(isinstance(c, str) for c in captions):
        raise ValueError("it has no captions (a list of strings)")
    return captions


def turns_of(record: Record) -> list[Turn]:
    """(question, answer) pairs of a LLaVA conversation, picture markers removed."""
    said = record["conversations"]
    if not isinstance(said, list):
        raise ValueError("its conversations are no list")
    turns: list[Turn] = []
    question: str | None = None
    for message in said:
        speaker, text = message.get("from"), message.get("value")
        if not isinstance(text, str):
            raise ValueError("a message has no text")
        if speaker in ("human", "user"):
            question = text.replace("<image>\n", "").replace("\n<image>", "").replace("<image>", "").strip()
        elif speaker in ("gpt", "assistant") and question is not None:
            turns.append((question, text.strip()))
            question = None
    if not turns:
        raise ValueError("no question is followed by an answer")
    return turns
