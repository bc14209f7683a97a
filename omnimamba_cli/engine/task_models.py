"""The language model of one task, read from its file without what only the other task needs.

LoRA is folded in layer by layer while the file is read, so that weights are never in memory twice.
"""

from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from omnimamba_cli.config import Task
from omnimamba_cli.engine import storage
from omnimamba_cli.engine.checkpoint import check_part, part_path, read_config
from omnimamba_cli.engine.safetensors_io import read_header
from omnimamba_cli.engine.weight_file import WeightFile
from omnimamba_cli.model.lora import merged
from omnimamba_cli.model.meta import on_meta
from omnimamba_cli.model.omnimamba import OmniMamba
from omnimamba_cli.model.quantized import Quantization, quantize

OTHERS: dict[Task, tuple[str, ...]] = {  # task -> parts that it never uses
    "mmu": ("image_embedding", "image_mlp", "caption_mlp", "t2i_positions"),
    "t2i": ("projector", "mmu_positions"),
}
FOLDED = ".in_proj.weight"


def load_for_task(
    directory: Path,
    task: Task,
    *,
    device: torch.device,
    dtype: torch.dtype,
    quantization: Quantization | None = None,
    other: OmniMamba | None = None,
) -> OmniMamba:
    """The model for a task, LoRA folded in, in eval mode, without the parts that only the other task uses.

    Tensors that it has in common with `other`, the other task's model, are shared. On a CPU tensors that need no
    conversion stay in the mapped file. The whole file is checked, as for training. Raises CheckpointError.
    """
    config = read_config(directory)
    path = part_path(directory, "model.safetensors")
    header = read_header(path)
    whole = on_meta(lambda: OmniMamba(config))
    check_part(path, header, whole)
    model = merged(whole, task)
    for name in OTHERS[task]:
        if hasattr(model, name):  # of a shared vocabulary there is one table, and both tasks read text
            delattr(model, name)
    shared: dict[str, Tensor] = other.state_dict() if other is not None else {}
    pair = config.backbone.lora_name(task)
    tensors: dict[str, Tensor] = {}
    wanted: dict[str, list[str]] = {}  # tensor that is not shared -> the stored weights it is made of
    for name in model.state_dict():
        own = pair == task and name.endswith(FOLDED)
        if name in shared and shared[name].dtype == storage.decoded_dtype(name, header, dtype) and not own:
            tensors[name] = shared[name]
        else:
            wanted[name] = [*_pair(name, pair), name] if pair is not None and name.endswith(FOLDED) else [name]
    with WeightFile(path, header, device, chain.from_iterable(wanted.values())) as file, torch.no_grad():
        for name, parts in wanted.items():
            if len(parts) == 1:
                tensors[name] = file.weight(name, dtype)
            else:
                scale = config.backbone.lora_alpha / config.backbone.lora_rank
                tensors[name] = _folded(file, parts, scale, storage.decoded_dtype(name, header, dtype))
    model.load_state_dict(tensors, strict=True, assign=True)
    model = model.requires_grad_(False).eval()
    return model if quantization is None else quantize(model, task, quantization, pack=device.type == "cpu")


def _pair(name: str, pair: str) -> list[str]:
    """Names of the LoRA pair A, B of an in_proj weight."""
    lora = name.removesuffix("weight") + f"lora.{pair}."
    return [lora + "A", lora + "B"]


def _folded(file: WeightFile, parts: list[str], scale: float, dtype: torch.dtype) -> Tensor:
    """W + scale * B A (out in) of A, B and W, summed in float32 from what is stored and rounded once."""
    A, B, weight = (storage.decode(name, file.header, file.stored, torch.float32) for name in parts)
    return weight.addmm_(B, A, alpha=scale).to(dtype)
