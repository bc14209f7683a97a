"""What trains in each stage: RECIPES, a table of the stages, and PARTS, the parts of the model that it names.

Source: the released training code of arXiv:2503.08686; but in stage 1 the other task's LoRA stays frozen, as the paper
says.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from omnimamba_cli.config import Task
from omnimamba_cli.errors import CheckpointError, UsageError, nearest

Stage = Literal[1, 2]

# part -> how the names of its parameters start; LoRA pairs are inside layers.N and known by ".lora.", see part_of
PARTS: dict[str, tuple[str, ...]] = {
    "text_embedding": ("text_embedding.",),
    "image_embedding": ("image_embedding.",),
    "image_mlp": ("image_mlp.",),
    "caption_mlp": ("caption_mlp.",),
    "t2i_positions": ("t2i_positions",),
    "mmu_positions": ("mmu_positions",),
    "projector": ("projector.",),
    "lora_mmu": (),
    "lora_t2i": (),
    "backbone": ("layers.", "norm_f."),
    "towers": ("towers.",),
}

# parts of a model whose tasks share them -> the parts they stand for: they train whenever one of those does
JOINED: dict[str, tuple[str, ...]] = {
    "vocabulary": ("text_embedding", "image_embedding"),
    "lora_shared": ("lora_mmu", "lora_t2i"),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One row of the table: the paper's settings, which options replace."""

    parts: tuple[str, ...]  # that train
    lr: float  # peak
    warmup: int  # steps
    steps: int
    batch_mmu: int = 0  # rows of a step, over all processes and micro-batches
    batch_t2i: int = 0


RECIPES: dict[tuple[Stage, Task | None], Recipe] = {
    (1, "mmu"): Recipe(parts=("projector", "lora_mmu"), lr=1e-3, warmup=100, steps=5_000, batch_mmu=256),
    (1, "t2i"): Recipe(
        parts=("lora_t2i", "image_embedding", "image_mlp", "caption_mlp", "t2i_positions", "text_embedding"),
        lr=8e-4,
        warmup=1_000,
        steps=100_000,
        batch_t2i=720,
    ),
    (2, None): Recipe(
        parts=tuple(part for part in PARTS if part != "towers"),
        lr=1e-4,
        warmup=0,
        steps=150_000,
        batch_mmu=24,
        batch_t2i=384,
    ),
}


def recipe(stage: Stage, task: Task | None) -> Recipe:
    """The paper's settings; stage 2 has no single task."""
    return RECIPES[stage, task if stage == 1 else None]


def part_of(name: str) -> str:
    """The part a parameter belongs to. Raises KeyError for a name of no part."""
    if ".lora." in name:
        return f"lora_{name.split('.lora.')[1].split('.')[0]}"
    if name.startswith("vocabulary."):
        return "vocabulary"
    for part, starts in PARTS.items():
        if starts and name.startswith(starts):
            return part
    raise KeyError(name)


def trained_parts(stage: Stage, task: Task | None, unfreeze: Sequence[str] = ()) -> set[str]:
    """The parts that train. "all" unfreezes everything but the towers, which must be named.

    Raises UsageError for a part that does not exist, naming the nearest.
    """
    parts = set(recipe(stage, task).parts)
    for word in unfreeze:
        if word == "all":
            parts |= set(PARTS) - {"towers"}
        elif word in PARTS:
            parts.add(word)
        else:
            raise UsageError(
                f"there is no part {word!r} to unfreeze; parts are {', '.join(PARTS)} and all",
                hint=nearest(word, [*PARTS, "all"]),
            )
    return parts


def trainable_names(names: Iterable[str], stage: Stage, task: Task | None, unfreeze: Sequence[str] = ()) -> set[str]:
    """Which of the parameter names train."""
    parts = trained_parts(stage, task, unfreeze)
    parts |= {joined for joined, either in JOINED.items() if parts.intersection(either)}
    return {name for name in names if part_of(name) in parts}


def freeze(
    model: nn.Module, towers: nn.Module | None, stage: Stage, task: Task | None, unfreeze: Sequence[str] = ()
) -> set[str]:
    """Set requires_grad on every parameter of the two modules by the table; returns the names that train."""
    parameters = [*model.named_parameters(), *(towers.named_parameters() if towers is not None else ())]
    trained = trainable_names((name for name, _ in parameters), stage, task, unfreeze)
    for name, parameter in parameters:
        parameter.requires_grad_(name in trained)
    return trained


# what stage 2 takes from the result of stage 1 of each task; everything else must be the same in both
OWNED: dict[Task, tuple[str, ...]] = {
    "mmu": ("projector", "lora_mmu", "mmu_positions"),
    "t2i": (*RECIPES[1, "t2i"].parts, "vocabulary"),  # a shared one: stage 1 of mmu leaves it as it is
}


def merge(mmu: Mapping[str, Tensor], t2i: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The start of stage 2: the common base, with each task's own parts from its own stage 1.

    Raises CheckpointError naming the first tensor of the base that differs, or a LoRA pair that both runs trained.
    """
    merged: dict[str, Tensor] = {}
    for name, tensor in mmu.items():
        other = t2i.get(name)
        if other is None or other.shape != tensor.shape:
            raise CheckpointError(f"the two results do not fit together: {name} differs in shape or is missing")
        part = part_of(name)
        if part in OWNED["t2i"]:
            merged[name] = other
        elif part in OWNED["mmu"] or torch.equal(tensor, other):
            merged[name] = tensor
        elif part == "lora_shared":
            raise CheckpointError(
                f"both results of stage 1 have trained the LoRA pair that the tasks share; first: {name}",
                hint="run stage 1 of mmu from the result of t2i, then give that one directory: --init DIR",
            )
        else:
            raise CheckpointError(
                f"the two results of stage 1 have different bases; first: {name}",
                hint="train both from one base without --unfreeze, or give one directory: --init DIR",
            )
    return merged
