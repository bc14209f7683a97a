"""A model's tensors for another choice of what its tasks share (vocabulary, LoRA). Loses nothing that was learned."""

from collections.abc import Mapping

import torch
from torch import Tensor

from omnimamba_cli.config import ModelConfig
from omnimamba_cli.errors import CheckpointError
from omnimamba_cli.model.lora import LoRAPair

TABLES = ("text_embedding.weight", "image_embedding.weight")
SHARED_TABLE = "vocabulary.weight"


def switched(tensors: Mapping[str, Tensor], config: ModelConfig, target: ModelConfig) -> dict[str, Tensor]:
    """Tensors of a model of `config` for one of `target`, which differs in vocabulary and LoRA alone.

    Rows of text and codes are put together or taken apart; LoRA pairs that changed nothing yet (B is zero, as in a
    converted base) make room for fresh ones. Raises CheckpointError for pairs that were trained.
    """
    result = dict(tensors)
    if config.vocabulary != target.vocabulary:
        if target.vocabulary == "shared":
            result[SHARED_TABLE] = torch.cat([result.pop(name) for name in TABLES])
        else:
            sizes = [config.text.vocab_size, config.vq.codebook_size]
            rows = result.pop(SHARED_TABLE).split(sizes)
            result |= {name: part.clone() for name, part in zip(TABLES, rows, strict=True)}
    old, new = config.backbone, target.backbone
    if (old.lora_names, old.lora_rank) == (new.lora_names, new.lora_rank):
        return result
    for name in [n for n in result if ".lora." in n]:
        tensor = result.pop(name)
        if name.endswith(".B") and tensor.any():
            raise CheckpointError(
                f"{config.name} has trained LoRA pairs, which would be lost; first: {name}",
                hint="--lora is for a model whose LoRA is fresh: a converted base, or a preset",
            )
    for i in range(new.n_layer):
        for pair in new.lora_names:
            made = LoRAPair(new.d_model, new.d_in_proj, new.lora_rank).state_dict()
            result |= {f"layers.{i}.mixer.in_proj.lora.{pair}.{part}": made[part] for part in ("A", "B")}
    return result
