"""What is said of a model of an ablation: how it answers and draws, its loss, its size. Used by ablation_runs.py."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ablation_plan import Plan, write_json
from omnimamba_cli.config import ModelConfig
from omnimamba_cli.data.codes import DrawnCodes
from omnimamba_cli.data.tokenizer import TextTokenizer
from omnimamba_cli.engine import hub
from omnimamba_cli.engine.checkpoint import part_sizes
from omnimamba_cli.engine.eval_set import Prompt, read_prompts
from omnimamba_cli.engine.evaluation import NAMING_CHECK, EvaluationResult, evaluate_picturebook
from omnimamba_cli.engine.runtime import pick_device
from omnimamba_cli.engine.scoring import is_right
from omnimamba_cli.engine.session import Session
from omnimamba_cli.engine.task_models import load_for_task

HELD_OUT_ROWS = 128  # drawings at a time


def measure(plan: Plan, model: Path, folder: Path) -> dict[str, Any]:
    """What is said of a model: `eval picturebook`, whole in `folder`, and the loss of drawings it has not seen."""
    begun = time.monotonic()
    result = evaluate(plan, model)
    judge = Session(hub.resolve(plan.options.judge), device=plan.device)
    prompts = read_prompts(plan.files.evaluation, plan.options.draw) if plan.options.draw else []
    judged, judged_names = judge_drawings(judge, [image for image, _ in result.drawn], prompts)
    write_json(folder / "evaluation.json", result.to_dict())
    if result.sheet is not None:
        result.sheet.save(folder / "drawn.png")
    data = result.to_dict()
    drawing = data["drawing"]
    return {
        "naming": data["naming"]["all"]["share"],
        "naming_unseen_scenes": data["naming"].get("unseen_scenes", {}).get("share"),
        "answering": data["answering"]["all"]["share"],
        "drawing_loss": drawing_loss(model, plan.files.held_out, plan.device),
        "drawing": judged,
        "drawing_names": judged_names,
        "cycle": None if drawing is None else drawing["checks"]["all"]["share"],
        "cycle_names": None if drawing is None else drawing["naming"]["all"]["share"],
        "parameters": part_sizes(model)["model"].parameters,
        "measuring_seconds": round(time.monotonic() - begun, 2),
        "device": device_name(plan.device),
        "versions": data["versions"],
        "date": data["date"],
    }


def evaluate(plan: Plan, model: Path) -> EvaluationResult:
    """`omnimamba eval picturebook`."""
    session = Session(model, device=plan.device)
    rows = 256 if session.device.type == "cuda" else None
    events = evaluate_picturebook(
        session,
        plan.files.evaluation,
        limit=plan.options.questions,
        draw=plan.options.draw,
        batch_size=rows,
    )
    *_, result = events
    assert isinstance(result, EvaluationResult)
    return result


def judge_drawings(
    judge: Session, images: Sequence[Image.Image], prompts: Sequence[Prompt]
) -> tuple[float | None, float | None]:
    """Shares of right answers of one judge, the same for all variants: to every check, and to the names alone.

    None where nothing was drawn. A judge that errs makes all variants worse alike.
    """
    pairs = [(image, check) for image, prompt in zip(images, prompts, strict=True) for check in prompt.checks]
    if not pairs:
        return None, None
    greedy = replace(judge.config.caption_sampling, temperature=0.0)
    answers = judge.captions([i for i, _ in pairs], [c.question for _, c in pairs], sampling=greedy, seed=0)
    right = [is_right(a.text, c.answers) for a, (_, c) in zip(answers, pairs, strict=True)]
    names = [r for r, (_, c) in zip(right, pairs, strict=True) if c.question == NAMING_CHECK]
    return sum(right) / len(right), sum(names) / len(names) if names else None


@torch.inference_mode()
def drawing_loss(directory: Path, codes: Path, device: str) -> float:
    """Mean cross-entropy of a code, in nats, over the codes alone: of the distribution that a code is drawn from.

    In float32, with every caption given. A shared vocabulary's loss in training is higher by what its model gives
    to text.
    """
    place, _ = pick_device(device)
    model = load_for_task(directory, "t2i", device=place, dtype=torch.float32)
    config: ModelConfig = replace(model.config, caption_dropout=0.0)
    drawings = DrawnCodes((codes,), config, TextTokenizer.from_file(directory / "tokenizer.json", config.text))
    total = 0.0
    for places in _pieces(len(drawings)):
        prefix, row = (t.to(place) for t in drawings.rows(places, places))
        row = row.long()
        x = torch.cat([model.embed_caption(prefix), model.embed_codes(row[:, :-1])], dim=1)
        scores = model.logits(model(x, "t2i")[:, prefix.shape[1] - 1 :], "t2i").float()
        total += float(F.cross_entropy(scores.flatten(0, 1), row.flatten(), reduction="sum"))
    return total / (len(drawings) * config.vq.codes)


def _pieces(count: int) -> Iterator[np.ndarray]:
    for start in range(0, count, HELD_OUT_ROWS):
        yield np.arange(start, min(start + HELD_OUT_ROWS, count))


def device_name(device: str) -> str:
    """What the figures were measured on."""
    place, _ = pick_device(device)
    return torch.cuda.get_device_name(place) if place.type == "cuda" else f"{place.type}, {os.cpu_count()} cores"
