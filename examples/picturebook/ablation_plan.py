"""What an ablation compares, with which settings, on what. Used by ablations.py; imports no torch."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnimamba_cli.config import LoRA, Vocabulary


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What a row of the table leaves out of the paper's design."""

    vocabulary: Vocabulary = "decoupled"
    lora: LoRA = "task"
    joint: bool = False  # both tasks and every part from the first step, instead of stage after stage


# Table 4 of the paper compares the first four, its "LoRA" being task LoRA
VARIANTS: dict[str, Variant] = {
    "paper": Variant(),
    "lora-only": Variant(vocabulary="shared"),
    "vocabularies-only": Variant(lora="none"),
    "neither": Variant(vocabulary="shared", lora="none"),
    "shared-lora": Variant(lora="shared"),
    "joint": Variant(joint=True),
}
SLOWEST = "lora-only"  # scores of text and codes at every place, and LoRA


@dataclass(frozen=True, kw_only=True)
class Files:
    """What every run reads."""

    talks: Path
    codes: Path
    held_out: Path  # codes of drawings that no caption of the training led to
    evaluation: Path  # a folder
    tokenizer: Path
    vision: Path
    vq: Path


@dataclass(frozen=True, kw_only=True)
class Options:
    """What decides a result: kept with the results, and compared when a comparison goes on."""

    preset: str
    parts: str  # where tokenizers and image encoder are from
    captions: int  # drawings to learn from
    talks: int
    held_out: int
    batch_t2i: int
    batch_mmu: int
    lr: float
    ema: float
    stage1_share: float  # of the steps
    questions: int  # pictures a split that are asked about
    draw: int
    judge: str  # the model that looks at what was drawn


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything a run needs to know; `steps` times both batches is the budget of samples of each variant."""

    options: Options
    steps: int
    out: Path
    files: Files
    device: str
    workers: int
    deadline: float = float("inf")  # time.time() at which runs save and stop


def say(text: str) -> None:
    """A line for people."""
    print(text, file=sys.stderr, flush=True)


def write_json(path: Path, data: Any) -> None:  # Any: JSON
    """A file that is there is whole."""
    temporary = path.with_name(f"{path.name}.partial")
    temporary.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
