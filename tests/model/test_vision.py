"""Towers: which block is read, in which order features are joined, what of a checkpoint is kept."""

import pytest
import timm
import torch
from torch import Tensor

from omnimamba_cli.config import TowerConfig
from omnimamba_cli.model.vision import CPU_PICTURES, Tower, VisionTowers, narrowed, timm_state
from omnimamba_cli.presets import IMAGENET_MEAN, IMAGENET_STD
from tests.numerics import assert_close

VIT = TowerConfig(
    name="vit_tiny_patch16_224",
    width=24,
    patches=16,
    image_size=64,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    options={"depth": 4, "embed_dim": 24, "num_heads": 3, "reg_tokens": 2},
)
CONV = TowerConfig(
    name="convnext_atto",
    width=48,
    patches=16,
    image_size=64,
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.5, 1.0),
    options={"dims": [16, 32, 48, 64], "depths": [1, 1, 1, 1]},
)
every_tower = pytest.mark.parametrize("config", [VIT, CONV], ids=["vit", "conv"])


def whole(config: TowerConfig) -> torch.nn.Module:
    """The whole timm model with random weights."""
    size = {"img_size": config.image_size} if config is VIT else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = timm.create_model(config.name, num_classes=0, **size, **config.options)
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, mean=0.02, std=0.1)  # timm starts some at zero or one
    return net.eval().requires_grad_(False)


def tower(config: TowerConfig) -> Tower:
    result = Tower(config).eval().requires_grad_(False)
    result.net.load_state_dict(timm_state(config, whole(config).state_dict()))
    return result


def pixels() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@every_tower
def test_the_block_before_the_last_is_read(config: TowerConfig) -> None:
    net, seen = whole(config), []
    block = net.blocks[-2] if config is VIT else net.stages[-2]
    block.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (config.mean, config.std))
    net((pixels() - mean) / std)
    # a class token and two registers stand before a ViT's patches; a map is read row by row
    want = seen[0][:, 3:] if config is VIT else seen[0].permute(0, 2, 3, 1).reshape(2, 16, 48)
    got = tower(config)(pixels())
    assert got.shape == (2, config.patches, config.width)
    assert_close("patches", want, got, 1e-6)


@every_tower
def test_pictures_are_normalised_by_the_towers_own_numbers(config: TowerConfig) -> None:
    one, other = tower(config), tower(config)
    one.mean, one.std = (0.0,) * 3, (1.0,) * 3
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (config.mean, config.std))
    assert_close("patches", one((pixels() - mean) / std), other(pixels()), 1e-6)
    assert not torch.allclose(one(pixels()), other(pixels()), rtol=0.05)


def test_what_follows_the_block_is_not_built() -> None:
    assert len(Tower(VIT).net.blocks) == 3
    assert len(Tower(CONV).net.stages) == 3
    for config in (VIT, CONV):
        assert not [name for name in Tower(config).net.state_dict() if name.startswith(("norm.", "head", "fc_norm"))]


@pytest.mark.parametrize("order", [(VIT, CONV), (CONV, VIT)], ids=["vit first", "conv first"])
def test_features_are_joined_in_the_configs_order(order: tuple[TowerConfig, ...]) -> None:
    towers = VisionTowers(order)
    for own, config in zip(towers.towers, order, strict=True):
        own.net.load_state_dict(tower(config).net.state_dict())
    got = towers(pixels())
    assert got.shape == (2, 16, 72)
    parts = got.split([config.width for config in order], -1)
    for config, part in zip(order, parts, strict=True):
        assert_close(config.name, tower(config)(pixels()), part, 1e-6)


def test_many_pictures_are_looked_at_a_few_at_a_time() -> None:
    towers, seen = VisionTowers((VIT, CONV)), []
    towers.towers[0].register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0])))
    many = torch.rand(2 * CPU_PICTURES + 1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    got = towers(many)
    assert seen == [CPU_PICTURES, CPU_PICTURES, 1]
    alone = torch.cat([towers(picture) for picture in many.split(1)])
    assert_close("patches", alone, got, 1e-6)


def test_towers_are_frozen_and_in_eval_mode() -> None:
    towers = VisionTowers((VIT, CONV))
    assert not any(parameter.requires_grad for parameter in towers.parameters())
    assert not any(module.training for module in towers.modules())


def test_towers_take_pictures_in_their_own_dtype() -> None:
    towers = VisionTowers((VIT, CONV))
    want = towers(pixels())
    got = towers.bfloat16()(pixels())
    assert got.dtype == torch.bfloat16
    assert_close("patches", want, got, 5e-2)


def test_construction_without_memory_then_assignment_works() -> None:
    towers = VisionTowers((VIT, CONV))
    with torch.device("meta"):
        empty = VisionTowers((VIT, CONV))
    assert all(tensor.is_meta for tensor in [*empty.parameters(), *empty.buffers()])
    empty.load_state_dict(towers.state_dict(), assign=True)
    assert torch.equal(empty(pixels()), towers(pixels()))


# published checkpoints


@every_tower
def test_a_checkpoint_keeps_exactly_what_the_tower_has(config: TowerConfig) -> None:
    theirs = whole(config).state_dict() | {"head.weight": torch.zeros(10, config.width), "head.bias": torch.zeros(10)}
    ours = timm_state(config, theirs)
    want = Tower(config).net.state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in want.items()}
    assert all(ours[name] is theirs[name] for name in ours)


def test_a_stranger_in_a_checkpoint_stays_to_be_refused() -> None:
    theirs = whole(VIT).state_dict() | {"blocks.9.mlp.fc1.weight": torch.zeros(1)}
    assert "blocks.9.mlp.fc1.weight" in timm_state(VIT, theirs)


def test_positions_of_another_size_are_resampled() -> None:
    theirs = whole(VIT).state_dict()
    dim = 24
    ramp = torch.linspace(0, 1, 14).expand(14, 14)[..., None]  # rises to the right
    grid = ramp.expand(14, 14, dim).reshape(1, 196, dim)
    prefix = torch.full((1, theirs["pos_embed"].shape[1] - 16, dim), 7.0)
    theirs["pos_embed"] = torch.cat([prefix, grid], 1).half()
    table = timm_state(VIT, theirs)["pos_embed"]
    assert (table.shape, table.dtype) == ((1, prefix.shape[1] + 16, dim), torch.float16)
    assert torch.equal(table[:, : prefix.shape[1]].float(), prefix)
    patches = table[0, prefix.shape[1] :, 0].float().view(4, 4)
    assert_close("rows", patches[:1].expand(4, 4), patches, 1e-3)
    assert bool((patches[0].diff() > 0.2).all())


def test_positions_of_the_same_size_are_left_alone() -> None:
    theirs = whole(VIT).state_dict()
    assert timm_state(VIT, theirs)["pos_embed"] is theirs["pos_embed"]


@every_tower
def test_narrowed_towers_see_under_autocast_what_the_given_ones_see(config: TowerConfig) -> None:
    towers = VisionTowers((config,))
    towers.towers[0].net.load_state_dict(timm_state(config, whole(config).state_dict()))
    before = {name: t.clone() for name, t in towers.state_dict().items()}
    narrow = narrowed(towers, torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(narrow(pixels()), towers(pixels()))
    assert all(torch.equal(t, before[name]) for name, t in towers.state_dict().items())
    kinds = {t.dtype for t in narrow.state_dict().values()}
    assert kinds == {torch.float32, torch.bfloat16}
