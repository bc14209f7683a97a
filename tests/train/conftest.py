"""Small data sets of coloured squares, and settings for short runs on a CPU."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from omnimamba_cli.config import Task
from omnimamba_cli.data.batches import DrawBatch, TalkBatch
from omnimamba_cli.engine.training import LoopConfig, StageSettings
from omnimamba_cli.train.language import Objective, TaskBatches

COLOURS = ("red", "green", "blue", "black")


@dataclass(frozen=True)
class Data:
    """Files of one small data set."""

    folder: Path
    talks: Path  # LLaVA-style JSON
    captions: Path  # JSON lines of pictures and captions
    codes: Path  # JSON lines of codes and captions


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Eight pictures; each has a conversation, two captions and a row of codes."""
    folder = tmp_path_factory.mktemp("data")
    draw = random.Random(0)
    talks, captions, codes = [], [], []
    for i in range(8):
        colour = COLOURS[i % 4]
        image = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(image).rectangle((8 * (i // 4), 8, 48, 48), fill=colour)
        image.save(folder / f"{i}.png")
        asked = [("what is here?", f"a {colour} house"), ("what colour?", colour)]
        messages = [m for q, a in asked for m in ({"from": "human", "value": q}, {"from": "gpt", "value": a})]
        messages[0]["value"] = "<image>\n" + messages[0]["value"]
        talks.append({"id": str(i), "image": f"{i}.png", "conversations": messages})
        captions.append({"image": f"{i}.png", "captions": [f"a {colour} house", f"a house, {colour}"]})
        codes.append({"tokens": [draw.randrange(64) for _ in range(64)], "captions": captions[-1]["captions"]})
    files = Data(folder, folder / "talks.json", folder / "captions.jsonl", folder / "codes.jsonl")
    files.talks.write_text(json.dumps(talks))
    for path, rows in ((files.captions, captions), (files.codes, codes)):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return files


def loop(**changes: Any) -> LoopConfig:
    """Four steps, a line of metrics each."""
    return LoopConfig(**{"steps": 4, "lr": 1e-3, "log_every": 1, "save_minutes": 0.0, **changes})


def stage(kind: str, data: Data, init: Path | str | None, output: Path, **changes: Any) -> StageSettings:
    """Settings of "mmu", "t2i" or "both" on the small data."""
    stage_number = 2 if kind == "both" else 1
    base = {
        "stage": stage_number,
        "task": None if kind == "both" else kind,
        "init": None if init is None else str(init),
        "output": output,
        "loop": loop(),
        "data_mmu": () if kind == "t2i" else (data.talks,),
        "data_t2i": () if kind == "mmu" else (data.codes,),
        "batch_mmu": 4,
        "batch_t2i": 4,
        "device": "cpu",
    }
    return StageSettings(**{**base, **changes})


def summed(objective: Objective, batch: DrawBatch | TalkBatch) -> torch.Tensor:
    """The summed cross-entropy of one batch."""
    task: Task = "t2i" if isinstance(batch, DrawBatch) else "mmu"
    return objective(TaskBatches({task: batch}), {task: torch.ones(())})[f"loss_{task}"]
