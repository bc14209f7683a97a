"""The language model of one task, straight from its file: what the other task alone needs is never read.

The task's LoRA is folded in while its layer is read, so the weights are in memory once, never twice.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from omnimamba_cli.config import Task
from omnimamba_cli.engine import storage
from omnimamba_cli.engine.checkpoint import check_part, part_path, read_all, read_config, read_to, reader
from omnimamba_cli.engine.safetensors_io import Header, read_header
from omnimamba_cli.model.lora import merged
from omnimamba_cli.model.meta import on_meta
from omnimamba_cli.model.omnimamba import OmniMamba
from omnimamba_cli.model.quantized import Quantization, quantize

OTHERS: dict[Task, tuple[str, ...]] = {  # what a task never touches
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
    """The model for a task, LoRA folded in, in eval mode; what only another task needs is not there at all.

    What it has in common with `other`, the one for the other task, is in memory once. Tensors that need no conversion
    on a CPU stay in the mapped file. The file is checked whole, as strictly as for training. Raises CheckpointError.
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
    as_stored, raw = reader(path, header, device, dtype), partial(read_to, path, header, device)

    def read(name: str) -> Tensor:
        target = storage.decoded_dtype(name, header, dtype)
        if name in shared and shared[name].dtype == target and not (pair == task and name.endswith(FOLDED)):
            return shared[name]
        if pair is None or not name.endswith(FOLDED):
            return as_stored(name)
        scale = config.backbone.lora_alpha / config.backbone.lora_rank
        return _folded(name, header, raw, pair, scale, target)

    model.load_state_dict(read_all(model.state_dict(), read, device), strict=True, assign=True)
    model = model.requires_grad_(False).eval()
    return model if quantization is None else quantize(model, task, quantization, pack=device.type == "cpu")


def _folded(
    name: str, header: Header, read: Callable[[str], Tensor], pair: str, scale: float, dtype: torch.dtype
) -> Tensor:
    """W + scale * B A (out in), summed in float32 from what is stored and rounded once."""
    lora = name.removesuffix("weight") + f"lora.{pair}."
    A, B = (storage.decode(lora + part, header, read, torch.float32) for part in ("A", "B"))
    weight = storage.decode(name, header, read, torch.float32)
    return weight.addmm_(B, A, alpha=scale).to(dtype)
