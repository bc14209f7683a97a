"""The configuration that a checkpoint's shapes tell. Names and shapes in, a config out; reads no file."""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

from omnimamba_cli.config import SPECIAL_TOKENS, Mamba2Config, ModelConfig, TextConfig, TowerConfig, VQConfig
from omnimamba_cli.errors import CheckpointError, ConfigError
from omnimamba_cli.model import convert
from omnimamba_cli.model.convert import BACKBONE, Shapes
from omnimamba_cli.presets import DINOV2, PRESETS, SIGLIP

UNKNOWN_TOWER = "unknown"  # a model directory without towers may have a config that names none


def config_from_shapes(shapes: Shapes, what: str = "the checkpoint") -> ModelConfig:
    """The configuration of a published or a plain Mamba-2 checkpoint.

    Candidates are the presets and a configuration derived from the shapes; the one with fewest differences wins, so
    that a damaged tensor is later reported as that one tensor. Raises CheckpointError where the shapes make no model.
    """
    published = convert.is_published(shapes)
    candidates, impossible = [PRESETS["1.3b"], PRESETS["370m"]], ""
    try:
        candidates.append(_published_config(shapes) if published else _base_config(shapes))
    except ConfigError as error:
        impossible = error.message
    except (KeyError, ValueError, IndexError, ZeroDivisionError):
        pass  # a tensor that tells a size is missing or misshapen; the presets are still there to compare with
    expected = convert.published_names if published else convert.base_names
    best = min(candidates, key=lambda config: misfit(shapes, expected(config)))
    if impossible and misfit(shapes, expected(best)) > len(shapes) // 2:
        raise CheckpointError(f"{what}: its shapes make no model ({impossible})")
    return best


def misfit(found: Shapes, expected: Shapes) -> int:
    """Number of tensors missing, not expected or of another shape."""
    return sum(found.get(name) != expected.get(name) for name in {*found, *expected})


def _published_config(shapes: Shapes) -> ModelConfig:
    codes = shapes[BACKBONE + "img_embeddings.word_embeddings.weight"][0]
    hidden = shapes[BACKBONE + "img_embeddings.project_in.projector.0.weight"]
    projector = shapes["projector.projector.0.weight"]
    text, backbone = text_from_rows(shapes[BACKBONE + "embedding.weight"][0]), backbone_from_shapes(shapes, BACKBONE)
    return ModelConfig(
        name=f"omnimamba-{backbone.d_model}x{backbone.n_layer}",
        backbone=backbone,
        text=text,
        vq=VQConfig(codebook_size=codes),
        towers=_towers(projector[1]),
        t2i_positions=shapes[BACKBONE + "pos_embed"][1],
        mmu_positions=shapes[BACKBONE + "mmu_pos_embed"][1],
        image_mlp_mult=hidden[0] // hidden[1],
        projector_mult=projector[0] // projector[1],
    )


def _base_config(shapes: Shapes) -> ModelConfig:
    backbone = backbone_from_shapes(shapes, "backbone.")
    text = text_from_rows(shapes["backbone.embedding.weight"][0])
    name = f"omnimamba-{backbone.d_model}x{backbone.n_layer}"
    return dataclasses.replace(PRESETS["1.3b"], name=name, backbone=backbone, text=text)


def _towers(width: int) -> tuple[TowerConfig, ...]:
    if width == DINOV2.width + SIGLIP.width:
        return (DINOV2, SIGLIP)
    return (dataclasses.replace(DINOV2, name=UNKNOWN_TOWER, width=width),)


def text_from_rows(rows: int) -> TextConfig:
    """The text vocabulary of an embedding with that many rows: GPT-NeoX's, or else the largest that fits."""
    text = TextConfig()
    if text.vocab_size == rows:
        return text
    multiple = text.pad_multiple if rows % text.pad_multiple == 0 else 1
    return TextConfig(base_vocab_size=rows - len(SPECIAL_TOKENS), pad_multiple=multiple)


def backbone_from_shapes(shapes: Shapes, prefix: str) -> Mamba2Config:
    """The backbone of tensors named PREFIXlayers.0.mixer.... Raises KeyError or ValueError where one is missing."""
    first = prefix + "layers.0.mixer."
    d_model, d_inner = shapes[first + "out_proj.weight"]
    conv_dim, _, d_conv = shapes[first + "conv1d.weight"]
    lora = shapes.get(first + "in_proj.mmu_lora_A0.weight", (Mamba2Config.lora_rank,))
    return Mamba2Config(
        d_model=d_model,
        n_layer=_count(shapes, prefix + "layers."),
        d_state=(conv_dim - d_inner) // 2,  # of one group: no published Mamba-2 has more
        d_conv=d_conv,
        expand=d_inner // d_model,
        headdim=d_inner // shapes[first + "A_log"][0],
        lora_rank=lora[0],
    )


def vq_from_shapes(shapes: Shapes, like: VQConfig, what: str = "the image tokenizer") -> VQConfig:
    """The VQ configuration of an image tokenizer's tensors; what they do not tell (picture size) is as in `like`."""
    try:
        ch = shapes["encoder.conv_in.weight"][0]
        levels = _count(shapes, "encoder.conv_blocks.")
        blocks = _count(shapes, "encoder.conv_blocks.0.res.")
        outputs = [shapes[f"encoder.conv_blocks.{i}.res.0.conv1.weight"][0] for i in range(levels)]
        size, width = shapes["quantize.embedding.weight"]
        values: dict[str, Any] = {"ch": ch, "ch_mult": tuple(n // ch for n in outputs), "num_res_blocks": blocks}
        values |= {"codebook_size": size, "code_dim": width, "z_channels": shapes["quant_conv.weight"][1]}
        return dataclasses.replace(like, **values)
    except (KeyError, ValueError, IndexError, ZeroDivisionError, ConfigError) as error:
        raise CheckpointError(f"{what}: its shapes tell no VQ configuration ({error} is missing or wrong)") from None


def _count(names: Iterable[str], prefix: str) -> int:
    """How many numbered items follow the prefix: one more than the highest number."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return max(int(match[1]) for name in names if (match := pattern.match(name))) + 1
