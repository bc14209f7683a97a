"""Settings of a run that do not depend on what is trained, and the Accelerator that it runs with."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType

from omnimamba_cli.errors import DeviceError, UsageError

Precision = Literal["no", "fp16", "bf16"]


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Settings of a run that do not depend on what is trained."""

    steps: int
    lr: float  # peak
    warmup: int = 0  # steps
    lr_floor: float = 0.01  # share of the peak at the end
    weight_decay: float = 0.0
    clip: float = 1.0  # largest gradient norm
    precision: Precision = "no"
    accumulate: int = 1  # micro-batches a step
    ema: float = 0.0  # decay of the weights' average; 0: none
    seed: int = 0
    log_every: int = 50  # steps
    save_every: int = 0  # steps between snapshots; 0: by minutes alone
    save_minutes: float = 10.0  # between snapshots; 0: by steps alone
    keep: int = 2  # snapshots
    max_minutes: float = 0.0  # of this run; 0: no limit
    eval_every: int = 0  # steps between evaluations on held-out data; 0: none
    clock_minutes: float = 0.0  # the rate's curve ends then, whatever the step; 0: it ends with the steps

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "log_every", "keep"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.ema < 1:
            raise UsageError(f"ema is {self.ema}; it must be from 0 to below 1")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise UsageError(f"lr is {self.lr}; it must be above 0")
        if not self.clip > 0:
            raise UsageError(f"clip is {self.clip}; it must be above 0", hint="inf leaves gradients as they are")


def accelerator(device: torch.device, precision: Precision) -> Accelerator:
    """An Accelerator for this run; nothing is left over from earlier runs in the same process.

    Raises DeviceError for fp16 on a CPU, and what check_kind raises.
    """
    if precision == "fp16" and device.type == "cpu":
        raise DeviceError("fp16 trains on a GPU alone; a CPU has no such arithmetic", hint="--dtype bf16 or fp32")
    single = not PartialState._shared_state or PartialState().num_processes == 1
    AcceleratorState._reset_state(reset_partial_state=single)
    if single and device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # accelerate takes the present one
    # no broadcast: buffers are constants, the same in every process
    shared = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    made = Accelerator(
        mixed_precision=precision,
        cpu=device.type == "cpu",
        step_scheduler_with_optimizer=False,
        kwargs_handlers=[shared],
    )
    check_kind(made.distributed_type, fsdp2=getattr(made, "is_fsdp2", False))  # older versions have no second one
    return made


def check_kind(kind: DistributedType, *, fsdp2: bool) -> None:
    """Raise UsageError for a kind of distributed training whose snapshots would not hold all weights."""
    if kind == DistributedType.FSDP and not fsdp2:
        raise UsageError("accelerate's configuration asks for FSDP 1", hint="fsdp_version: 2 in its fsdp_config")
    known = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.FSDP)
    if kind not in known:
        raise UsageError(
            f"accelerate's configuration asks for {kind.value}; training runs as one process, under DDP or FSDP 2",
            hint="accelerate launch --multi_gpu -m omnimamba_cli ..., or torchrun",
        )


@contextmanager
def fixed_shapes(device: torch.device) -> Iterator[None]:
    """In the block cuDNN tries all algorithms at each convolution's first call: pays where shapes stay fixed."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or device.type == "cuda"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
