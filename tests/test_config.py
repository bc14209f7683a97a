"""Settings: what goes out comes back, what is wrong is named."""

import json
from typing import Any

import pytest

from omnimamba_cli.config import (
    SPECIAL_TOKENS,
    Mamba2Config,
    ModelConfig,
    SamplingConfig,
    TextConfig,
    TowerConfig,
    VQConfig,
)
from omnimamba_cli.errors import ConfigError
from omnimamba_cli.presets import PRESETS, preset


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_survives_json(name: str) -> None:
    again = ModelConfig.from_dict(json.loads(json.dumps(PRESETS[name].to_dict())))
    assert again == PRESETS[name]


def test_every_field_survives_json() -> None:
    config = SamplingConfig(
        temperature=0.7, top_k=5, top_p=0.9, min_p=0.1, repetition_penalty=1.2, max_new_tokens=9, guidance=2.0
    )
    assert SamplingConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_missing_fields_take_their_defaults() -> None:
    assert ModelConfig.from_dict({"name": "x"}) == ModelConfig(name="x")
    assert ModelConfig.from_dict({"name": "x", "vq": {"ch": 64}}).vq == VQConfig(ch=64)


def test_a_whole_number_is_a_float_too() -> None:
    value = SamplingConfig.from_dict({"temperature": 1}).temperature
    assert (value, type(value)) == (1.0, float)


# refusals


@pytest.mark.parametrize(
    ("data", "message", "hint"),
    [
        ({"name": "x", "backbon": {}}, "ModelConfig has no field 'backbon'", "'backbone'"),
        ({"name": "x", "backbone": {"d_modle": 1}}, "backbone has no field 'd_modle'", "'d_model'"),
        ({"name": "x", "image_sampling": {"top_q": 1}}, "image_sampling has no field 'top_q'", "'top_"),
    ],
)
def test_an_unknown_field_is_named_with_the_nearest(data: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_dict(data)
    assert caught.value.message == message
    assert hint in (caught.value.hint or "")


def test_an_unknown_field_like_no_other_has_no_hint() -> None:
    with pytest.raises(ConfigError, match="zzzz") as caught:
        ModelConfig.from_dict({"name": "x", "zzzz": 1})
    assert caught.value.hint is None


TOWER = {"name": "v", "width": 4, "patches": 4, "image_size": 8, "mean": [0.5], "std": [0.5]}


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({}, "name"),
        ([], "ModelConfig"),
        ({"name": 3}, "name"),
        ({"name": "x", "caption_tokens": 2.5}, "caption_tokens"),
        ({"name": "x", "caption_tokens": True}, "caption_tokens"),
        ({"name": "x", "caption_tokens": None}, "caption_tokens"),
        ({"name": "x", "caption_dropout": "0.1"}, "caption_dropout"),
        ({"name": "x", "backbone": {"d_model": "64"}}, "backbone.d_model"),
        ({"name": "x", "backbone": 64}, "backbone"),
        ({"name": "x", "vq": {"ch_mult": [1, "2"]}}, r"vq.ch_mult\[1\]"),
        ({"name": "x", "vq": {"ch_mult": 2}}, "vq.ch_mult"),
        ({"name": "x", "towers": 5}, "towers"),
        ({"name": "x", "towers": {"a": 1}}, "towers"),
        ({"name": "x", "towers": [TOWER, 5]}, r"towers\[1\]"),
        ({"name": "x", "towers": [{**TOWER, "widht": 4}]}, r"towers\[0\] has no field 'widht'"),
        ({"name": "x", "towers": [{**TOWER, "options": 3}]}, "options"),
        ({"name": "x", "towers": [{"name": "v"}]}, "towers"),
    ],
    ids=lambda value: json.dumps(value) if not isinstance(value, str) else None,
)
def test_a_wrong_type_is_named(data: Any, field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        ModelConfig.from_dict(data)


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
        {"max_new_tokens": 0},
        {"guidance": -1.0},
    ],
    ids=str,
)
def test_sampling_out_of_range_is_named(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        SamplingConfig(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": 0.0},
        {"top_k": 0},
        {"top_p": 1.0},
        {"min_p": 0.0},
        {"min_p": 1.0},
        {"max_new_tokens": 1},
        {"guidance": 0.0},
    ],
    ids=str,
)
def test_the_ends_of_a_range_belong_to_it(values: dict[str, Any]) -> None:
    assert SamplingConfig(**values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mamba2Config(d_model=0), "d_model is 0"),
        (lambda: Mamba2Config(n_layer=-1), "n_layer is -1"),
        (lambda: Mamba2Config(lora_rank=-1), "lora_rank is -1"),
        (lambda: Mamba2Config(headdim=48), "headdim 48 does not divide d_inner 4096"),
        (lambda: Mamba2Config(ngroups=3), "ngroups 3 does not divide the 64 heads"),
        (lambda: VQConfig(ch=40), "norm_groups 32 does not divide"),
        (lambda: VQConfig(image_size=250), "image_size 250 is no multiple of 16"),
        (lambda: VQConfig(norm_groups=0), "norm_groups"),
        (lambda: VQConfig(ch_mult=()), "ch_mult"),
        (lambda: VQConfig(patch_width=-1), "patch_width"),
        (lambda: VQConfig(patch_blocks=0), "patch_blocks"),
        (lambda: TextConfig(pad_multiple=0), "pad_multiple"),
        (lambda: Mamba2Config(norm_eps=0.0), "norm_eps is 0.0"),
        (lambda: Mamba2Config(lora_dropout=1.5), "lora_dropout is 1.5"),
        (lambda: TowerConfig(**{**TOWER, "width": 0}), "width is 0"),
        (lambda: TowerConfig(**{**TOWER, "patches": -1}), "patches is -1"),
        (lambda: TowerConfig(**{**TOWER, "std": (0.5, 0.0)}), "std of v is (0.5, 0.0)"),
        (lambda: ModelConfig(name="x", caption_tokens=-5), "caption_tokens is -5"),
        (lambda: ModelConfig(name="x", mmu_positions=0), "mmu_positions is 0"),
        (lambda: ModelConfig(name="x", projector_mult=0), "projector_mult is 0"),
        (lambda: ModelConfig(name="x", caption_dropout=1.5), "caption_dropout is 1.5"),
        (lambda: ModelConfig(name="x", format=2), "format 2"),
        (lambda: ModelConfig(name="x", prompt="hello"), "must contain {question}"),
        (lambda: ModelConfig(name="x", t2i_positions=328), "328 is less than the 329"),
        (lambda: preset("nanno"), "no preset 'nanno'"),
    ],
)
def test_impossible_sizes_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert message in caught.value.message


@pytest.mark.parametrize("other", [{"patches": 9}, {"image_size": 16}])
def test_towers_that_cannot_be_joined_are_refused(other: dict[str, int]) -> None:
    values = {**TOWER, "mean": (0.5,), "std": (0.5,)}
    towers = (TowerConfig(**values), TowerConfig(**{**values, **other}))
    with pytest.raises(ConfigError, match="towers differ"):
        ModelConfig(name="x", towers=towers)


def test_a_wrong_preset_hints_at_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        preset("nan")
    assert "'nano'" in (caught.value.hint or "")


# derived sizes


def test_sizes_of_the_published_model() -> None:
    config = preset("1.3b")
    b = config.backbone
    assert (b.d_inner, b.nheads, b.conv_dim, b.d_in_proj) == (4096, 64, 4352, 8512)
    assert (config.text.vocab_size, config.vq.codebook_size) == (50_288, 16_384)
    assert (config.vq.downsample, config.vq.grid, config.vq.codes) == (16, 16, 256)
    assert (config.vision_dim, config.patches, config.vision_image_size) == (2176, 729, 384)
    assert (config.t2i_prefix, config.t2i_length, config.t2i_positions) == (72, 329, 329)
    assert (config.mmu_positions, config.max_text_tokens) == (1500, 449)


def test_sizes_of_the_middle_model() -> None:
    b = preset("370m").backbone
    assert (b.d_model, b.n_layer, b.nheads, b.conv_dim, b.d_in_proj) == (1024, 48, 32, 2304, 4384)


def test_special_tokens_follow_the_tokenizers() -> None:
    text = TextConfig()
    ids = {name: text.special(name) for name in SPECIAL_TOKENS}
    assert ids == {
        "[PAD]": 50277,
        "soi": 50278,
        "eoi": 50279,
        "sot": 50280,
        "eot": 50281,
        "t2i": 50282,
        "mmu": 50283,
        "soc": 50284,
        "eoc": 50285,
        "lvg": 50286,
    }


@pytest.mark.parametrize(("base", "rows"), [(5, 16), (6, 16), (7, 32), (50_277, 50_288), (2048, 2064)])
def test_the_vocabulary_is_padded_upwards(base: int, rows: int) -> None:
    assert TextConfig(base_vocab_size=base).vocab_size == rows


def test_a_model_without_towers_has_no_vision() -> None:
    config = ModelConfig(name="x")
    assert (config.vision_dim, config.patches, config.vision_image_size) == (0, 0, 0)
