"""Tensor names and shapes of other people's checkpoints and of ours, dict to dict. Reads no file, copies no tensor.

A conversion accounts for every tensor it is given, or raises CheckpointError naming the first that does not fit.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from omnimamba_cli.config import ModelConfig
from omnimamba_cli.errors import CheckpointError
from omnimamba_cli.model.lora import LoRAPair
from omnimamba_cli.model.omnimamba import OmniMamba

Shapes = Mapping[str, tuple[int, ...]]

BACKBONE = "llm_backbone.mamba.backbone."
HEADS = {  # head -> the embedding it is tied to
    "llm_backbone.mamba.lm_head.weight": BACKBONE + "embedding.weight",
    "llm_backbone.mamba.img_head.weight": BACKBONE + "img_embeddings.word_embeddings.weight",
}
POSITIONS = {"t2i_positions": BACKBONE + "pos_embed", "mmu_positions": BACKBONE + "mmu_pos_embed"}
VQ_IGNORED = "quantize.codebook_used"  # a training-time count of the reference


def own_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of model.safetensors."""
    c, d = config.backbone, config.backbone.d_model
    text, codes = config.text.vocab_size, config.vq.codebook_size
    tables: dict[str, tuple[int, ...]] = {"text_embedding.weight": (text, d), "image_embedding.weight": (codes, d)}
    if config.vocabulary == "shared":
        tables = {"vocabulary.weight": (text + codes, d)}
    shapes = tables | {
        "t2i_positions": (config.t2i_positions, d),
        "mmu_positions": (config.mmu_positions, d),
        "caption_mlp.0.weight": (d, d),
        "caption_mlp.2.weight": (d, d),
        "norm_f.weight": (d,),
    }
    widths = {
        "image_mlp": (d, config.image_mlp_mult * d, d, d),
        "projector": (config.vision_dim, config.projector_mult * config.vision_dim, d, d),
    }
    for name, width in widths.items():
        for j in range(3):
            shapes[f"{name}.{2 * j}.weight"] = (width[j + 1], width[j])
            shapes[f"{name}.{2 * j}.bias"] = (width[j + 1],)
    layer: dict[str, tuple[int, ...]] = {
        "norm.weight": (d,),
        "mixer.in_proj.weight": (c.d_in_proj, d),
        "mixer.conv1d.weight": (c.conv_dim, 1, c.d_conv),
        "mixer.conv1d.bias": (c.conv_dim,),
        "mixer.dt_bias": (c.nheads,),
        "mixer.A_log": (c.nheads,),
        "mixer.D": (c.nheads,),
        "mixer.norm.weight": (c.d_inner,),
        "mixer.out_proj.weight": (d, c.d_inner),
    }
    for pair in c.lora_names:
        layer[f"mixer.in_proj.lora.{pair}.A"] = (c.lora_rank, d)
        layer[f"mixer.in_proj.lora.{pair}.B"] = (c.d_in_proj, c.lora_rank)
    for i in range(c.n_layer):
        shapes |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
    return shapes


def published_name(name: str) -> str:
    """One of our names in the published layout."""
    if name in POSITIONS:
        return POSITIONS[name]
    if name.startswith("projector."):
        return "projector." + name
    if match := re.fullmatch(r"(.*in_proj\.)lora\.(mmu|t2i)\.([AB])", name):
        return f"{BACKBONE}{match[1]}{match[2]}_lora_{match[3]}0.weight"
    renames = {
        "text_embedding.": "embedding.",
        "image_embedding.": "img_embeddings.word_embeddings.",
        "image_mlp.": "img_embeddings.project_in.projector.",
        "caption_mlp.0.": "caption_embed.cap_proj.fc1.",
        "caption_mlp.2.": "caption_embed.cap_proj.fc2.",
    }
    for ours, theirs in renames.items():
        if name.startswith(ours):
            return BACKBONE + theirs + name.removeprefix(ours)
    return BACKBONE + name


def _check_paper(config: ModelConfig) -> None:
    """Raise CheckpointError for a model with parts that the published layout has no names for."""
    if config.deviations:
        raise CheckpointError(f"{config.name} has {' and '.join(config.deviations)}: the published layout has no such")


def published_names(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published layout: 645 of them at 1.3B, tied heads stored again."""
    _check_paper(config)
    ours = own_shapes(config)
    shapes = {published_name(n): (1, *s) if n in POSITIONS else s for n, s in ours.items()}
    return shapes | {head: shapes[embedding] for head, embedding in HEADS.items()}


def differences(found: Shapes, expected: Shapes) -> list[str]:
    """A sentence for what is missing, one for what is not expected, one for wrong shapes; empty when all fits."""
    missing = [n for n in expected if n not in found]
    extra = [n for n in found if n not in expected]
    misshapen = [n for n in expected if n in found and tuple(found[n]) != tuple(expected[n])]
    sentences = []
    if missing:
        sentences.append(f"{missing[0]} is missing{_others(missing)}")
    if extra:
        sentences.append(f"{extra[0]} is not expected{_others(extra)}")
    if misshapen:
        name = misshapen[0]
        sizes = f"{tuple(found[name])} instead of {tuple(expected[name])}"
        sentences.append(f"{name} is {sizes}{_others(misshapen)}")
    return sentences


def _others(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def check(found: Shapes, expected: Shapes, what: str, *, hint: str | None = None) -> None:
    """Raise CheckpointError unless names and shapes are equal; the message names the first of each kind."""
    sentences = differences(found, expected)
    if sentences:
        counts = f"{len(found)} tensors, {len(expected)} expected"
        raise CheckpointError(f"{what} does not fit ({counts}): {'; '.join(sentences)}", hint=hint)


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Name -> shape."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def from_published(
    tensors: Mapping[str, Tensor], config: ModelConfig, what: str = "the checkpoint"
) -> dict[str, Tensor]:
    """Tensors of the published layout under our names, sharing memory.

    The heads may both be left out, being tied; where they are stored they must equal their embeddings.
    """
    expected = published_names(config)
    if not any(head in tensors for head in HEADS):
        expected = {name: shape for name, shape in expected.items() if name not in HEADS}
    check(shapes_of(tensors), expected, what)
    for head, embedding in HEADS.items():
        if head in tensors and not torch.equal(tensors[head], tensors[embedding]):
            raise CheckpointError(f"{what}: {head} differs from {embedding}, to which this model ties it")
    result = {name: tensors[published_name(name)] for name in own_shapes(config)}
    return result | {name: result[name][0] for name in POSITIONS}


def to_published(tensors: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The inverse of from_published, with both heads."""
    _check_paper(config)
    check(shapes_of(tensors), own_shapes(config), "the model")
    result = {published_name(name): t[None] if name in POSITIONS else t for name, t in tensors.items()}
    return result | {head: result[embedding] for head, embedding in HEADS.items()}


def base_names(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a plain state-spaces/mamba2 language model, its tied head included."""
    _check_paper(config)
    rows = (config.text.vocab_size, config.backbone.d_model)
    plain = {f"backbone.{name}": shape for name, shape in own_shapes(config).items() if _is_plain_mamba2(name)}
    return {"backbone.embedding.weight": rows} | plain | {"lm_head.weight": rows}


def _is_plain_mamba2(name: str) -> bool:
    """Whether a plain Mamba-2 language model has this tensor too, under the same name."""
    return name.startswith(("layers.", "norm_f.")) and ".lora." not in name


def from_mamba2_base(
    tensors: Mapping[str, Tensor], config: ModelConfig, what: str = "the checkpoint"
) -> dict[str, Tensor]:
    """Backbone and text embedding of a plain state-spaces/mamba2 language model, under our names.

    The rest of the model is new and starts from its own initialisation. The checkpoint's vocabulary must have as
    many rows as ours. Its head may be left out, being tied; stored, it must equal the embedding.
    """
    expected, head = base_names(config), "lm_head.weight"
    if head not in tensors:
        del expected[head]
    check(shapes_of(tensors), expected, what)
    embedding = tensors["backbone.embedding.weight"]
    if head in tensors and not torch.equal(tensors[head], embedding):
        raise CheckpointError(f"{what}: {head} differs from backbone.embedding.weight, to which it is tied")
    plain = {name: tensors[f"backbone.{name}"] for name in own_shapes(config) if _is_plain_mamba2(name)}
    return {"text_embedding.weight": embedding} | plain


def fresh_tensors(config: ModelConfig, *, seed: int) -> dict[str, Tensor]:
    """The tensors that a plain Mamba-2 language model lacks, float32, as a new model would initialise them.

    They come from a model of one layer and few words, so that the backbone is not made a second time.
    """
    small = dataclasses.replace(
        config,
        backbone=dataclasses.replace(config.backbone, n_layer=1),
        text=dataclasses.replace(config.text, base_vocab_size=1),
    )
    wanted = [n for n in own_shapes(config) if n != "text_embedding.weight" and not _is_plain_mamba2(n)]
    b = config.backbone
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = OmniMamba(small).state_dict()
        result = {name: model[name] for name in wanted if ".lora." not in name}
        for i in range(b.n_layer if b.lora_rank else 0):
            for name in b.lora_names:
                pair = LoRAPair(b.d_model, b.d_in_proj, b.lora_rank).state_dict()
                result |= {f"layers.{i}.mixer.in_proj.lora.{name}.{part}": pair[part] for part in ("A", "B")}
    return {name: result[name] for name in wanted}


def from_vq(
    tensors: Mapping[str, Tensor], expected: Shapes, what: str = "the image tokenizer"
) -> tuple[dict[str, Tensor], list[str]]:
    """The image tokenizer's tensors, and the names that were dropped. `expected`: names and shapes of our VQModel."""
    dropped = [VQ_IGNORED] if VQ_IGNORED in tensors else []
    result = {name: tensor for name, tensor in tensors.items() if name not in dropped}
    check(shapes_of(result), expected, what)
    return {name: result[name] for name in expected}, dropped


def is_published(names: Mapping[str, Any]) -> bool:
    """True for the names of the published OmniMamba file."""
    return any(name.startswith("llm_backbone.mamba.") for name in names)


def is_mamba2_base(names: Mapping[str, Any]) -> bool:
    """True for the names of a state-spaces/mamba2 language model."""
    return any(name.startswith("backbone.layers.") and name.endswith(".mixer.dt_bias") for name in names)


def is_vq(names: Mapping[str, Any]) -> bool:
    """True for the names of a VQ image tokenizer."""
    return "quantize.embedding.weight" in names or any(name.startswith("encoder.conv_blocks.") for name in names)


def is_tower(names: Mapping[str, Any]) -> bool:
    """True for the names of an image encoder of timm."""
    return any(re.match(r"(blocks\.\d|patch_embed|stem|stages\.\d)", name) for name in names)
