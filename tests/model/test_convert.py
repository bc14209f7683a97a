"""Names and shapes of other checkpoints, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from omnimamba_cli.config import Mamba2Config, ModelConfig, TextConfig, TowerConfig, VQConfig
from omnimamba_cli.errors import CheckpointError
from omnimamba_cli.model import convert, sizes
from omnimamba_cli.model.omnimamba import OmniMamba
from omnimamba_cli.model.vq import VQModel
from omnimamba_cli.presets import PRESETS

SHARED = Path(__file__).parents[2].parent / "shared" / "parity"
TOWER = TowerConfig(
    name="vit_tiny_patch16_224", width=192, patches=16, image_size=64, mean=(0.5,) * 3, std=(0.5,) * 3,
    options={"depth": 3, "embed_dim": 192},
)  # fmt: skip
CONFIG = ModelConfig(
    name="tiny",
    backbone=Mamba2Config(d_model=32, n_layer=2, d_state=16, headdim=16, lora_rank=2),
    text=TextConfig(base_vocab_size=22),
    vq=VQConfig(codebook_size=64),
    towers=(TOWER,),
)


def published(config: ModelConfig = CONFIG) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return convert.to_published(OmniMamba(config).state_dict(), config)


def parity(name: str) -> Path:
    if not (SHARED / name).is_file():
        pytest.skip(f"{name} is not beside this checkout")
    return SHARED / name


def test_names_and_shapes_equal_the_published_manifest() -> None:
    manifest = {k: tuple(v) for k, v in json.loads(parity("manifest_1.3b.json").read_text()).items()}
    assert convert.published_names(PRESETS["1.3b"]) == manifest
    assert len(manifest) == 645
    assert sizes.config_from_shapes(manifest) == PRESETS["1.3b"]


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_own_shapes_are_those_of_the_module(name: str) -> None:
    with torch.device("meta"):
        model = OmniMamba(PRESETS[name])
    assert convert.own_shapes(PRESETS[name]) == convert.shapes_of(model.state_dict())


def test_published_round_trip_keeps_every_tensor() -> None:
    theirs = published()
    ours = convert.from_published(theirs, CONFIG)
    assert convert.shapes_of(ours) == convert.own_shapes(CONFIG)
    back = convert.to_published(ours, CONFIG)
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[name], theirs[name]) for name in theirs)


def test_conversion_copies_no_tensor() -> None:
    theirs = published()
    ours = convert.from_published(theirs, CONFIG)
    assert ours["mmu_positions"].data_ptr() == theirs["llm_backbone.mamba.backbone.mmu_pos_embed"].data_ptr()


def test_both_tied_heads_may_be_left_out_but_not_one() -> None:
    theirs = published()
    lm_head, img_head = convert.HEADS
    del theirs[lm_head]
    with pytest.raises(CheckpointError, match=f"{lm_head} is missing"):
        convert.from_published(theirs, CONFIG)
    del theirs[img_head]
    assert len(convert.from_published(theirs, CONFIG)) == len(convert.own_shapes(CONFIG))


def test_a_head_unlike_its_embedding_is_refused() -> None:
    theirs = published()
    name = next(iter(convert.HEADS))
    theirs[name] = theirs[name] + 1
    with pytest.raises(CheckpointError, match=name):
        convert.from_published(theirs, CONFIG)


def test_missing_extra_and_misshapen_tensors_are_all_named() -> None:
    theirs = published()
    del theirs["projector.projector.4.bias"]
    theirs["stranger.weight"] = torch.zeros(1)
    name = "llm_backbone.mamba.backbone.layers.1.mixer.D"
    theirs[name] = torch.zeros(5)
    with pytest.raises(CheckpointError) as caught:
        convert.from_published(theirs, CONFIG)
    message = caught.value.message
    assert "projector.projector.4.bias is missing" in message
    assert "stranger.weight is not expected" in message
    assert f"{name} is (5,) instead of (4,)" in message


def test_sizes_come_from_the_shapes_of_any_size() -> None:
    config = sizes.config_from_shapes(convert.shapes_of(published()))
    assert config.backbone == CONFIG.backbone
    assert config.text == CONFIG.text
    assert config.vq.codebook_size == 64
    assert config.vision_dim == 192


@pytest.mark.parametrize("name", ["1.3b", "370m"])
@pytest.mark.parametrize("layout", [convert.published_names, convert.base_names])
def test_a_damaged_preset_is_still_recognised(name: str, layout) -> None:  # type: ignore[no-untyped-def]
    shapes = layout(PRESETS[name])
    embedding = next(n for n in shapes if n.endswith("backbone.embedding.weight"))
    shapes[embedding] = (7,)
    assert sizes.config_from_shapes(shapes) == PRESETS[name]
    del shapes[next(n for n in shapes if n.endswith("layers.0.mixer.out_proj.weight"))]
    assert sizes.config_from_shapes(shapes) == PRESETS[name]


def test_parity_weights_load_strictly() -> None:
    stored = load_file(parity("omnimamba_small.safetensors"))
    theirs = {k.removeprefix("weights."): v for k, v in stored.items() if k.startswith("weights.")}
    config = sizes.config_from_shapes(convert.shapes_of(theirs))
    assert (config.backbone.d_model, config.text.vocab_size, config.vq.codebook_size) == (128, 176, 96)
    OmniMamba(config).load_state_dict(convert.from_published(theirs, config))


def base() -> dict[str, torch.Tensor]:
    theirs = {k.removeprefix("llm_backbone.mamba."): v for k, v in published().items()}
    return {name: theirs[name] for name in convert.base_names(CONFIG)}


def test_a_plain_mamba2_fills_backbone_and_words_and_the_rest_is_fresh() -> None:
    theirs = base()
    loaded, fresh = convert.from_mamba2_base(theirs, CONFIG), convert.fresh_tensors(CONFIG, seed=3)
    assert not loaded.keys() & fresh.keys()
    assert convert.shapes_of(loaded | fresh) == convert.own_shapes(CONFIG)
    name = "layers.1.mixer.in_proj.weight"
    assert torch.equal(loaded[name], theirs["backbone." + name])
    assert not fresh["layers.1.mixer.in_proj.lora.t2i.B"].any()
    lora = [fresh[f"layers.{i}.mixer.in_proj.lora.{task}.A"] for i in (0, 1) for task in ("mmu", "t2i")]
    assert len({float(a.sum()) for a in lora}) == 4


def test_fresh_tensors_follow_the_seed_and_leave_the_global_one_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, same, other = (convert.fresh_tensors(CONFIG, seed=s)["t2i_positions"] for s in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_plain_mamba2_of_another_vocabulary_is_refused() -> None:
    config = replace(CONFIG, text=TextConfig(base_vocab_size=50))
    with pytest.raises(CheckpointError, match=r"backbone\.embedding\.weight is \(32, 32\) instead of \(64, 32\)"):
        convert.from_mamba2_base(base(), config)


def test_the_image_tokenizer_drops_its_count_and_says_so() -> None:
    config = VQConfig(codebook_size=16, z_channels=8, ch=4, ch_mult=(1, 2), num_res_blocks=1, norm_groups=4)
    state = VQModel(config).state_dict()
    expected = convert.shapes_of(state)
    state["quantize.codebook_used"] = torch.zeros(65536)
    assert sizes.vq_from_shapes(convert.shapes_of(state), VQConfig(norm_groups=4)) == config
    kept, dropped = convert.from_vq(state, expected)
    assert convert.shapes_of(kept) == expected
    assert dropped == ["quantize.codebook_used"]
    state["loss.discriminator"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"loss\.discriminator"):
        convert.from_vq(state, expected)


def test_the_published_image_tokenizer_has_our_names() -> None:
    with __import__("safetensors").safe_open(parity("vq16.safetensors"), "pt") as file:
        shapes = {k: tuple(v) for k, v in json.loads(file.metadata()["shapes"]).items()}
    assert sizes.vq_from_shapes(shapes, VQConfig()) == VQConfig()
    with torch.device("meta"):
        ours = convert.shapes_of(VQModel(VQConfig()).state_dict())
    assert convert.differences(shapes, ours | {convert.VQ_IGNORED: shapes[convert.VQ_IGNORED]}) == []
