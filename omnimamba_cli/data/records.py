"""Data files read record by record: JSON arrays, JSON lines, CSV and TSV tables, folders of pictures with texts.

Every format becomes the same records: {"image": name, "captions": [...]}, {"image", "conversations": [...]} or
{"tokens", "captions"}. examples/data/README.md shows each.
"""

import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from omnimamba_cli.data.rejects import Rejects
from omnimamba_cli.data.sequences import Turn
from omnimamba_cli.errors import DataError, InputError, file_reason
from omnimamba_cli.json_text import parse

Record = dict[str, Any]  # Any: JSON
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
TABLES = {".csv": ",", ".tsv": "\t"}
# the first name is ours, the others are those of common exports
IMAGE_KEYS = ("image", "file_name", "path")
CAPTION_KEYS = ("captions", "caption", "text")
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # how such files begin
NO_UTF_8 = re.compile("[\udc80-\udcff]")  # what errors="surrogateescape" makes of a byte that is none


def read_records(path: Path, rejects: Rejects, label: str | None = None) -> Iterator[tuple[str, Record]]:
    """(name, record) of a file or folder, one at a time; the name says where it stands: `talks.json[3]`, `a.csv:7`.

    `label` stands for the file in these names; by default the file's own name. A malformed line or picture, or text
    that is no UTF-8, goes into `rejects`. Raises DataError for a malformed array or table and for UTF-16, InputError
    for what cannot be read.
    """
    label = label or path.name
    try:
        if path.is_dir():
            yield from _folder(path, label, rejects)
            return
        _check_encoding(path)
        if path.suffix.lower() in TABLES:
            yield from _table(path, label, rejects)
        else:
            with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
                start = file.read(1)
                while start and start.isspace():
                    start = file.read(1)
                file.seek(0)
                yield from _array(path, label, file.read(), rejects) if start == "[" else _lines(label, file, rejects)
    except OSError as error:
        raise InputError(
            f"{error.filename or path}: {file_reason(error)}",
            hint="give a .json, .jsonl, .csv or .tsv file, a folder of pictures with texts, or .tar shards",
        ) from None


def _check_encoding(path: Path) -> None:
    """Raises DataError for UTF-16, which would be thousands of lines of no JSON."""
    with path.open("rb") as file:
        if file.read(2) in UTF_16:
            raise DataError(f"{path} is UTF-16", hint="save it as UTF-8: iconv -f UTF-16 -t UTF-8 FILE > FILE.utf8")


def utf_8(text: str) -> str:
    """The text, decoded with errors="surrogateescape", unchanged. Raises ValueError where a byte was no UTF-8."""
    if not text.isascii() and (found := NO_UTF_8.search(text)):
        raise ValueError(f"byte 0x{ord(found[0]) - 0xDC00:02x} is no UTF-8")
    return text


def root_of(path: Path, image_root: Path | None) -> Path:
    """The folder that the names of a data file's pictures are relative to."""
    if path.is_dir():
        return path
    return image_root or path.parent


def labels_of(paths: Sequence[Path]) -> list[str]:
    """How each file is called in the names of samples: by its name, or by its path where names are the same."""
    names = [path.name for path in paths]
    return [str(path) if names.count(path.name) > 1 else path.name for path in paths]


def _lines(label: str, lines: Iterable[str], rejects: Rejects) -> Iterator[tuple[str, Record]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name = f"{label}:{number}"
        try:
            value = parse(utf_8(line))
        except ValueError as error:
            rejects.add(name, f"no valid JSON ({error})")
            continue
        if isinstance(value, dict):
            yield name, value
        else:
            rejects.add(name, "no JSON object")


def _array(path: Path, label: str, text: str, rejects: Rejects) -> Iterator[tuple[str, Record]]:
    decoder = json.JSONDecoder()
    place, number = text.index("[") + 1, 0
    while True:
        while text[place : place + 1].isspace() or text[place : place + 1] == ",":
            place += 1
        if text[place : place + 1] == "]":
            break
        number, begin = number + 1, place
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path} is no valid JSON array: item {number}: {error}",
                hint="repair that item, or write one object a line (.jsonl): then a bad line costs one sample only",
            ) from None
        if not isinstance(value, dict):
            raise DataError(f"{path}: item {number} is no JSON object", hint="every item is one sample: {...}")
        name = f"{label}[{number}]"
        try:
            utf_8(text[begin:place])
        except ValueError as error:
            rejects.add(name, str(error))
            continue
        yield name, value
    if rest := text[place + 1 :].strip():
        raise DataError(
            f"{path} goes on after its array: {rest[:20]}",
            hint="a file holds one array; arrays of several files can be given as several files",
        )


def _table(path: Path, label: str, rejects: Rejects) -> Iterator[tuple[str, Record]]:
    """A row is a picture and a caption; rows of the same picture are one sample with several captions."""
    found: dict[str, tuple[str, list[str]]] = {}
    line = 0  # that the last good row ends in
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            # strict: a quotation mark left open would make one caption of the rest
            rows = csv.DictReader(_clean(file), delimiter=TABLES[path.suffix.lower()], strict=True)
            columns = _columns(path, rows.fieldnames or ())
            line = rows.line_num
            for row in rows:
                line = rows.line_num
                name = f"{label}:{line}"
                try:
                    image, caption = _cells(row, columns)
                    found.setdefault(image, (name, []))[1].append(caption)
                except ValueError as error:
                    rejects.add(name, str(error))
    except csv.Error as error:
        raise DataError(
            f"{path} is no valid table: the row that begins in line {line + 1}: {error}",
            hint="within quotation marks, one is written twice",
        ) from None
    for image, (name, captions) in found.items():
        yield name, {"image": image, "captions": captions}


def _cells(row: Record, columns: Sequence[str]) -> tuple[str, str]:
    """A row's picture and caption. Raises ValueError where one is missing, or cells are left over."""
    image, caption = (row[column] for column in columns)
    if not (image and caption):
        raise ValueError("it lacks its picture or its caption")
    # the reader's key of what is past the last column
    if any(row.get(None, ())):  # type: ignore[call-overload]  # its stubs know no None
        raise ValueError("it has more cells than the first line names: a caption with a comma needs quotation marks")
    return utf_8(image), utf_8(caption)


def _clean(lines: Iterable[str]) -> Iterator[str]:
    return (line.replace("\0", "") for line in lines)


def _columns(path: Path, names: Sequence[str]) -> list[str]:
    """The names of the two columns, pictures and captions. Raises DataError where one is missing."""
    found = [next((key for key in keys if key in names), "") for keys in (IMAGE_KEYS, CAPTION_KEYS)]
    if not all(found):
        raise DataError(
            f"{path}: its first line ({', '.join(names) or 'empty'}) does not name the columns image and caption",
            hint="the first line says what the columns are: image,caption",
        )
    return found


def _folder(folder: Path, label: str, rejects: Rejects) -> Iterator[tuple[str, Record]]:
    """Every picture below a folder, in the order of paths, with the lines of the .txt file of the same name."""
    for picture in pictures_below(folder):
        image = picture.relative_to(folder).as_posix()
        name, beside = f"{label}/{image}", picture.with_suffix(".txt")
        try:
            text = utf_8(beside.read_text(encoding="utf-8-sig", errors="surrogateescape"))
        except FileNotFoundError:
            rejects.add(name, f"there is no {beside.name} with its captions beside it")
            continue
        except (OSError, ValueError) as error:
            reason = file_reason(error) if isinstance(error, OSError) else str(error)
            rejects.add(name, f"its captions, {beside.name}: {reason}")
            continue
        yield name, {"image": image, "captions": [line.strip() for line in text.splitlines()]}


def pictures_below(folder: Path) -> list[Path]:
    """Files below a folder that are pictures by their names, in the order of paths. Raises InputError for none."""
    named = (p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    found = sorted(p for p in named if not p.is_dir())
    if not found:
        raise InputError(f"{folder}: no pictures below it ({', '.join(s[1:] for s in IMAGE_SUFFIXES)})")
    return found


def image_of(record: Record) -> str | None:
    """The picture's name; None for a sample of text alone. Raises ValueError for anything else."""
    image = next((record[key] for key in IMAGE_KEYS if key in record), None)
    if image is not None and (not isinstance(image, str) or not image):
        raise ValueError("its image is no file name")
    return image


def captions_of(record: Record) -> list[str]:
    """A sample's captions, empty ones left out. Raises ValueError where none is left."""
    found = next((record[key] for key in CAPTION_KEYS if key in record), None)
    captions = [found] if isinstance(found, str) else found
    if not isinstance(captions, list) or not captions or not all(isinstance(c, str) for c in captions):
        raise ValueError("it has no captions (a list of strings)")
    whole = [c for c in captions if c.strip()]
    if not whole:
        raise ValueError("its captions are empty")
    return whole


def turns_of(record: Record) -> list[Turn]:
    """(question, answer) pairs of a LLaVA conversation, picture markers removed, empty answers left out.

    Raises ValueError where no answer is left.
    """
    said = record["conversations"]
    if not isinstance(said, list):
        raise ValueError("its conversations are no list")
    turns: list[Turn] = []
    question: str | None = None
    for message in said:
        if not isinstance(message, dict) or not isinstance(message.get("value"), str):
            raise ValueError("a message has no text")
        speaker, text = message.get("from"), message["value"]
        if speaker in ("human", "user"):
            question = text.replace("<image>\n", "").replace("\n<image>", "").replace("<image>", "").strip()
        elif speaker in ("gpt", "assistant") and question is not None:
            turns.append((question, text.strip()))
            question = None
    if not turns:
        raise ValueError("no question is followed by an answer")
    whole = [(question, answer) for question, answer in turns if answer]
    if not whole:
        raise ValueError("its answers are empty")
    return whole
