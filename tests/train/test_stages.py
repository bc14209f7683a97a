"""The table of what trains, part by part."""

import pytest
import torch

from omnimamba_cli.config import ModelConfig
from omnimamba_cli.errors import CheckpointError, UsageError
from omnimamba_cli.model.omnimamba import OmniMamba
from omnimamba_cli.train.stages import PARTS, merge, part_of, recipe, trainable_names, trained_parts

IMAGE_MLP = {f"image_mlp.{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")}
CAPTION_MLP = {"caption_mlp.0.weight", "caption_mlp.2.weight"}


@pytest.fixture(scope="module")
def names(tiny_config: ModelConfig) -> list[str]:
    with torch.device("meta"):
        return [name for name, _ in OmniMamba(tiny_config).named_parameters()]


def lora(task: str) -> set[str]:
    return {f"layers.{i}.mixer.in_proj.lora.{task}.{x}" for i in (0, 1) for x in "AB"}


def test_stage_1_mmu_trains_the_projector_and_its_lora(names: list[str]) -> None:
    projector = {f"projector.{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")}
    assert trainable_names(names, 1, "mmu") == projector | lora("mmu")


def test_stage_1_t2i_trains_its_vocabulary_and_its_lora(names: list[str]) -> None:
    wanted = {"text_embedding.weight", "image_embedding.weight", "t2i_positions"} | IMAGE_MLP | CAPTION_MLP
    assert trainable_names(names, 1, "t2i") == wanted | lora("t2i")


def test_stage_2_trains_everything_but_the_towers(names: list[str]) -> None:
    assert trainable_names([*names, "towers.0.net.stem.weight"], 2, None) == set(names)


def test_every_parameter_belongs_to_a_part(names: list[str]) -> None:
    assert {part_of(name) for name in names} == set(PARTS) - {"towers"}


def test_unfreeze_adds_parts_and_all_leaves_the_towers(names: list[str]) -> None:
    assert trained_parts(1, "mmu", ["backbone"]) == {"projector", "lora_mmu", "backbone"}
    assert trained_parts(1, "mmu", ["all"]) == set(PARTS) - {"towers"}
    assert "towers" in trained_parts(1, "mmu", ["towers"])


def test_unknown_part_names_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        trained_parts(1, "mmu", ["back_bone"])
    assert "backbone" in str(caught.value.hint)


def test_recipes_are_the_papers() -> None:
    mmu, t2i, both = recipe(1, "mmu"), recipe(1, "t2i"), recipe(2, None)
    assert (mmu.lr, mmu.warmup, mmu.steps, mmu.batch_mmu) == (1e-3, 100, 5_000, 256)
    assert (t2i.lr, t2i.warmup, t2i.steps, t2i.batch_t2i) == (8e-4, 1_000, 100_000, 720)
    assert (both.lr, both.warmup, both.steps, both.batch_mmu, both.batch_t2i) == (1e-4, 0, 150_000, 24, 384)


def test_merge_takes_each_tasks_parts_from_its_own_run(tiny_config: ModelConfig) -> None:
    mmu = {n: t.clone() for n, t in OmniMamba(tiny_config).state_dict().items()}
    t2i = {n: t.clone() for n, t in mmu.items()}
    for name in trainable_names(mmu, 1, "mmu"):
        mmu[name] += 1
    for name in trainable_names(t2i, 1, "t2i"):
        t2i[name] += 2
    merged = merge(mmu, t2i)
    for name in mmu:
        source = t2i if name in trainable_names(t2i, 1, "t2i") else mmu
        assert torch.equal(merged[name], source[name]), name


def test_merge_refuses_different_bases_by_name(tiny_config: ModelConfig) -> None:
    mmu = {n: t.clone() for n, t in OmniMamba(tiny_config).state_dict().items()}
    t2i = {n: t.clone() for n, t in mmu.items()}
    t2i["layers.1.mixer.D"][3] += 1e-6
    with pytest.raises(CheckpointError, match=r"layers\.1\.mixer\.D"):
        merge(mmu, t2i)
