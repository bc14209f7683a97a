"""The language model of one task, straight from its file: what the other task alone needs is never read.

The task's LoRA is folded in while its layer is read, so the weights are in memory once, never twice.
"""

from collections.abc import Callable, MutableMapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from omnimamba_cli.config import ModelConfig, Task
from omnimamba_cli.engine import storage
from omnimamba_cli.engine.checkpoint import check_part, on_meta, part_path, read_to
from omnimamba_cli.engine.safetensors_io import Header, read_header, read_safetensors
from omnimamba_cli.model.lora import merged
from omnimamba_cli.model.omnimamba import OmniMamba

OTHERS: dict[Task, tuple[str, ...]] = {  # what a task never touches
    "mmu": ("image_embedding", "image_mlp", "caption_mlp", "t2i_positions"),
    "t2i": ("projector", "mmu_positions"),
}
FOLDED = ".in_proj.weight"


def load_task(
    directory: Path,
    config: ModelConfig,
    task: Task,
    *,
    device: torch.device,
    dtype: torch.dtype,
    shared: MutableMapping[str, Tensor],
) -> OmniMamba:
    """The model of one task with its LoRA folded in, in eval mode; other tasks' parts are not there at all.

    `shared` holds the tensors that both tasks use, by name: those in it are taken, those read are added. Tensors that
    need no conversion on a CPU stay in the mapped file. The file is checked whole, as strictly as for training.
    Raises CheckpointError.
    """
    path = part_path(directory, "model.safetensors")
    header = read_header(path)
    whole = on_meta(lambda: OmniMamba(config))
    check_part(path, header, whole)
    model = merged(whole, task)
    for name in OTHERS[task]:
        delattr(model, name)
    mapped, _ = read_safetensors(path)
    tensors: dict[str, Tensor] = {}
    scale = config.backbone.lora_alpha / config.backbone.lora_rank if config.backbone.lora_rank else 0.0
    with path.open("rb") as file, torch.no_grad():
        read = partial(read_to, file, header, device)
        for name in model.state_dict():
            if name.endswith(FOLDED) and scale:
                tensors[name] = _folded(name, header, read, task, scale, dtype)
                continue
            if name not in shared:
                stays = device.type == "cpu" and storage.decoded_dtype(name, header, dtype) == mapped[name].dtype
                source = mapped.__getitem__ if stays else read
                shared[name] = storage.decode(name, header, source, dtype).to(device)
            tensors[name] = shared[name]
    model.load_state_dict(tensors, strict=True, assign=True)
    return model.requires_grad_(False).eval()


def _folded(
    name: str, header: Header, read: Callable[[str], Tensor], task: Task, scale: float, dtype: torch.dtype
) -> Tensor:
    """W + scale * B A (out in), summed in float32 from what is stored and rounded once."""
    lora = name.removesuffix("weight") + f"lora.{task}."
    A, B = (storage.decode(lora + part, header, read, torch.float32) for part in ("A", "B"))
    weight = storage.decode(name, header, read, torch.float32)
    return weight.addmm_(B, A, alpha=scale).to(dtype)
