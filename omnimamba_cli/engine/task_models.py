"""A model directory's language model, made ready to decode one task: LoRA folded in, weights narrowed if asked."""

from pathlib import Path

import torch

from omnimamba_cli.config import Task
from omnimamba_cli.engine.checkpoint import load_directory
from omnimamba_cli.model.lora import merge, merge_beside
from omnimamba_cli.model.omnimamba import OmniMamba
from omnimamba_cli.model.quantized import Quantization, quantize


def load_for_task(
    directory: Path,
    task: Task,
    *,
    device: torch.device,
    dtype: torch.dtype,
    quantization: Quantization | None = None,
    other: OmniMamba | None = None,
) -> OmniMamba:
    """The model for a task; what it has in common with `other`, the one for the other task, is in memory once.

    The weights before folding in are not kept: they are more than half of the model.
    """
    source = load_directory(directory, device=device if other is None else "cpu", dtype=dtype, parts=("model",)).model
    assert source is not None  # load_directory raises when it is missing
    model = merge(source, task) if other is None else merge_beside(other, source, task)
    return model.eval() if quantization is None else quantize(model.eval(), task, quantization)
