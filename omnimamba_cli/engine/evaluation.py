"""How well a model names, answers and draws, on a PictureBook evaluation set. Prints nothing, writes nothing.

Answers are compared with the set's own. Drawings have no outside judge: the model itself is asked what it drew. That is
called cycle accuracy, wherever it is shown.
"""

import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import torch
from PIL import Image

from omnimamba_cli import __version__
from omnimamba_cli.config import ModelConfig, SamplingConfig
from omnimamba_cli.data import sequences
from omnimamba_cli.data.reading import load_image, squashed
from omnimamba_cli.engine.eval_set import (
    PROMPTS_FILE,
    QUESTIONS_FILE,
    Prompt,
    Question,
    read_prompts,
    read_questions,
)
from omnimamba_cli.engine.lock import sha256
from omnimamba_cli.engine.results import NAMING, EvaluationResult, EvaluationStep, Facts, Failure
from omnimamba_cli.engine.scoring import is_right
from omnimamba_cli.engine.session import Session

__all__ = ["EvaluationResult", "EvaluationStep", "evaluate_picturebook"]

NAMING_CHECK = "what is here?"
WINDOW = 256  # pictures held decoded while their questions are asked


def evaluate_picturebook(
    session: Session,
    data_dir: Path,
    *,
    limit: int | None = None,
    draw: int = 0,
    seed: int = 0,
    batch_size: int | None = None,
) -> Iterator[EvaluationStep | EvaluationResult]:
    """Measures a model on a folder that examples/picturebook/make.py has made; the last event is the result.

    limit: pictures of each split at most; draw: how many of the first prompts to draw, with seed, seed + 1, ...
    Answers are greedy. Raises InputError for a folder without a set, DataError for a malformed line.

    >>> *_, result = evaluate_picturebook(om.load("nano"), Path("data/eval"), draw=64)  # doctest: +SKIP
    >>> result.to_dict()["naming"]["unseen_scenes"]["share"]  # doctest: +SKIP
    """
    if (limit is not None and limit < 1) or draw < 0:
        raise ValueError(f"limit is {limit}, draw is {draw}; at least 1 and 0")
    asked = read_questions(data_dir, limit)
    prompts = read_prompts(data_dir, draw) if draw else []
    settings = {"limit": limit, "draw": draw, "seed": seed, "batch_size": batch_size}
    result = EvaluationResult(_facts(session, data_dir, asked, prompts, settings))
    return _measure(session, data_dir, asked, prompts, result, seed, batch_size)


def _measure(
    session: Session,
    data_dir: Path,
    asked: list[Question],
    prompts: list[Prompt],
    result: EvaluationResult,
    seed: int,
    batch_size: int | None,
) -> Iterator[EvaluationStep | EvaluationResult]:
    begun = time.perf_counter()
    total = len(asked) + len(prompts) + sum(len(prompt.checks) for prompt in prompts)
    yield EvaluationStep("answering", 0, total)
    if prompts:
        _ = session.pixels  # a model that cannot draw says so now, not after all the answers
    rows = batch_size or (64 if session.device.type == "cuda" else 16)
    for done in _answer_all(session, data_dir, asked, rows, result):
        yield EvaluationStep("answering", done, total)
    wanted = [prompt.prompt for prompt in prompts]
    for drawing in session.stream_generate(
        wanted, seed=seed, sampling=_image_sampling(session.config), batch_size=batch_size
    ):
        result.drawn.append((drawing.image, drawing.prompt))
        yield EvaluationStep("drawing", 1, total)
    for done in _judge_all(session, prompts, rows, result):
        yield EvaluationStep("judging", done, total)
    result.seconds = time.perf_counter() - begun
    yield result


def _answer_all(
    session: Session, data_dir: Path, asked: list[Question], rows: int, result: EvaluationResult
) -> Iterator[int]:
    """Asks everything, each picture decoded once; yields how many were answered."""
    by_image: dict[str, list[Question]] = {}
    for question in asked:
        by_image.setdefault(question.image, []).append(question)
    images = iter(by_image)
    while window := list(islice(images, WINDOW)):
        pictures = {image: _as_seen(load_image(data_dir / image), session.config) for image in window}
        questions = [question for image in window for question in by_image[image]]
        answers: dict[int, str] = {}
        for batch in _ask(session, [(pictures[q.image], q.question) for q in questions], rows):
            answers.update(batch)
            yield len(batch)
        # in the set's order, which batches are not in
        for i, q in enumerate(questions):
            right = is_right(answers[i], q.answers)
            result.answers.add(q.split, q.type, right)
            if q.type == NAMING and not right:
                result.failures.append(Failure(q.split, data_dir / q.image, answers[i], q.answers[0]))


def _judge_all(session: Session, prompts: list[Prompt], rows: int, result: EvaluationResult) -> Iterator[int]:
    """Asks the model about its own drawings; yields how many checks were made."""
    pictures = [_as_seen(image, session.config) for image, _ in result.drawn]
    checks = [(i, check) for i, prompt in enumerate(prompts) for check in prompt.checks]
    answers: dict[int, str] = {}
    for batch in _ask(session, [(pictures[i], check.question) for i, check in checks], rows):
        answers.update(batch)
        yield len(batch)
    for n, (i, check) in enumerate(checks):
        kind, _, split = prompts[i].kind.partition("/")
        right = is_right(answers[n], check.answers)
        result.cycle.add(split or "prompts", kind, right)
        if check.question == NAMING_CHECK:
            result.cycle_names.add(split or "prompts", kind, right)


def _ask(session: Session, pairs: Sequence[tuple[Image.Image, str]], rows: int) -> Iterator[dict[int, str]]:
    """Answers by index of the pair, batch by batch; the questions of a batch have one length, as the model needs."""
    by_length: dict[int, list[int]] = {}
    for i, (_, question) in enumerate(pairs):
        ids = sequences.question_ids(session.tokenizer, session.config.prompt, question)
        by_length.setdefault(len(ids), []).append(i)
    sampling = _caption_sampling(session.config)
    for indices in by_length.values():
        for first in range(0, len(indices), rows):
            batch = indices[first : first + rows]
            images, questions = [pairs[i][0] for i in batch], [pairs[i][1] for i in batch]
            results = session.captions(images, questions, sampling=sampling, seed=0)
            yield {i: r.text for i, r in zip(batch, results, strict=True)}


def _as_seen(image: Image.Image, config: ModelConfig) -> Image.Image:
    """The picture in the size that the model sees, so that large ones are not kept, nor scaled for each question."""
    return squashed(image, config.vision_image_size) if config.towers else image


def _caption_sampling(config: ModelConfig) -> SamplingConfig:
    """Greedy: a score should not depend on a seed."""
    return replace(config.caption_sampling, temperature=0.0)


def _image_sampling(config: ModelConfig) -> SamplingConfig:
    """The model's own, without the guidance that it was not trained for."""
    return config.image_sampling if config.caption_dropout else replace(config.image_sampling, guidance=1.0)


def _facts(
    session: Session, data_dir: Path, asked: list[Question], prompts: list[Prompt], settings: dict[str, int | None]
) -> Facts:
    """What is needed to repeat the evaluation."""
    parts = sorted(session.directory.glob("*.safetensors"))
    data = {"questions": len(asked), "pictures": len({q.image for q in asked}), "prompts": len(prompts)}
    files = [data_dir / QUESTIONS_FILE, *([data_dir / PROMPTS_FILE] if prompts else [])]
    return {
        "suite": "picturebook",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {"name": session.config.name, "sha256": {part.name: sha256(part) for part in parts}},
        "data": {**data, "sha256": {file.name: sha256(file) for file in files}},
        "settings": {
            **settings,
            "device": str(session.device),
            "dtype": str(session.dtype).removeprefix("torch."),
            "quantize": session.quantization,
            "template": session.config.prompt,
            "caption_sampling": _caption_sampling(session.config).to_dict(),
            "image_sampling": _image_sampling(session.config).to_dict() if prompts else None,
        },
        "versions": {"omnimamba": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
