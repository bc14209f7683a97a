"""Reads an evaluation set: eval.jsonl (questions about pictures) and prompts.jsonl (things to draw)."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnimamba_cli.errors import DataError, InputError
from omnimamba_cli.json_text import parse

QUESTIONS_FILE, PROMPTS_FILE = "eval.jsonl", "prompts.jsonl"


@dataclass(frozen=True)
class Question:
    """A question about a picture of the set."""

    split: str
    image: str  # path inside the set's folder
    question: str
    type: str
    answers: tuple[str, ...]  # best first


@dataclass(frozen=True)
class Check:
    """What a viewer of a drawing should answer."""

    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Prompt:
    """Something to draw."""

    prompt: str
    kind: str  # "two/unseen_pairs": how many things, and the split
    checks: tuple[Check, ...]


def read_questions(folder: Path, limit: int | None) -> list[Question]:
    """The questions in the file's order, of the first `limit` pictures of each split.

    Raises InputError when the folder holds no set, DataError for a malformed line or an empty file.
    """
    path = folder / QUESTIONS_FILE
    if not path.is_file():
        raise InputError(
            f"{folder}: holds no evaluation set ({QUESTIONS_FILE} is not there)", hint=_how_to_make(folder)
        )
    taken: dict[str, set[str]] = {}
    kept = []
    for record, where in _records(path):
        fields = {name: _text(record, name, where) for name in ("split", "image", "question", "type")}
        question = Question(**fields, answers=_texts(record, where))
        images = taken.setdefault(question.split, set())
        if limit is None or len(images) < limit or question.image in images:
            images.add(question.image)
            kept.append(question)
    if not kept:
        raise DataError(f"{path}: holds no question", hint=_how_to_make(folder))
    return kept


def read_prompts(folder: Path, count: int) -> list[Prompt]:
    """The first `count` prompts, or all if there are fewer. Errors as read_questions."""
    path = folder / PROMPTS_FILE
    if not path.is_file():
        raise InputError(
            f"{folder}: holds nothing to draw ({PROMPTS_FILE} is not there)", hint="--draw 0 leaves it out"
        )
    prompts: list[Prompt] = []
    for record, where in _records(path):
        if len(prompts) == count:
            break
        prompt, kind = _text(record, "prompt", where), _text(record, "kind", where)
        checks = record.get("checks")
        if not isinstance(checks, list) or not all(isinstance(check, dict) for check in checks):
            raise DataError(f'{where}: "checks" must be a list of objects with a question and its answers')
        asked = tuple(Check(_text(check, "question", where), _texts(check, where)) for check in checks)
        prompts.append(Prompt(prompt, kind, asked))
    return prompts


def _how_to_make(folder: Path) -> str:
    return f"python examples/picturebook/make.py data/picturebook eval --n 300 --out {folder}"


def _records(path: Path) -> Iterator[tuple[dict[str, Any], str]]:  # Any: a JSON object
    """Every object of a JSONL file, and where it stands for errors."""
    with path.open(encoding="utf-8") as file:
        try:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                where = f"{path}, line {number}"
                record = parse(line)
                if not isinstance(record, dict):
                    raise DataError(f"{where}: is no JSON object")
                yield record, where
        except ValueError as error:  # bad JSON, or bytes that are no UTF-8
            where = "" if isinstance(error, UnicodeDecodeError) else f", line {number}"
            raise DataError(f"{path}{where}: is no JSON ({error})") from None


def _text(record: dict[str, Any], name: str, where: str) -> str:
    value = record.get(name)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f'{where}: "{name}" is {json.dumps(value)}; it must be a text')
    return value


def _texts(record: dict[str, Any], where: str) -> tuple[str, ...]:
    values = record.get("answers")
    if not isinstance(values, list) or not values or not all(isinstance(v, str) and v.strip() for v in values):
        raise DataError(f'{where}: "answers" is {json.dumps(values)}; it must be a list of texts')
    return tuple(values)
