"""Where and in what precision a model runs, each choice with its reason."""

import os

import torch

from omnimamba_cli.config import ModelConfig
from omnimamba_cli.errors import DeviceError
from omnimamba_cli.ops import halves, packed_int8

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LARGE = 500_000_000  # parameters; from here on a CPU decodes in 16 bits, in half the memory


def pick_device(name: str = "auto") -> tuple[torch.device, str]:
    """The device for "auto", "cpu", "cuda", "cuda:N" or "mps", and why.

    Raises DeviceError for a device that is not there, with what would work.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device()), "a CUDA device is there"
        if torch.backends.mps.is_available():
            return torch.device("mps"), "Apple's GPU is there"
        return torch.device("cpu"), "no GPU is there"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"{name!r} is no device", hint="--device auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise DeviceError(
                f"device {name} was asked for, this machine has {count} CUDA devices", hint="--device cpu"
            )
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise DeviceError("device mps was asked for, this machine has no Apple GPU", hint="--device cpu")
    elif device.type != "cpu":
        raise DeviceError(f"device {name!r} is not supported", hint="--device auto, cpu, cuda, cuda:N or mps")
    return device, "asked for"


def processors() -> int:
    """How many processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_first_process() -> bool:
    """False in all but one of the processes that torchrun or accelerate launch started together."""
    return os.environ.get("RANK", "0") == "0"


def parameter_count(config: ModelConfig) -> int:
    """About how many parameters the language model has (embeddings, mixers)."""
    c = config.backbone
    mixers = c.n_layer * c.d_model * (c.d_in_proj + c.d_inner)
    return mixers + c.d_model * (config.text.vocab_size + config.vq.codebook_size)


def pick_dtype(name: str, device: torch.device, config: ModelConfig) -> tuple[torch.dtype, str]:
    """The dtype for "auto", "fp32", "fp16" or "bf16" on a device, and why."""
    if name != "auto":
        if name not in DTYPES:
            raise DeviceError(f"{name!r} is no dtype", hint=f"--dtype auto, {', '.join(DTYPES)}")
        return DTYPES[name], "asked for"
    if device.type in ("cuda", "mps"):
        return torch.float16, "published weights are stored in it; half the memory traffic"
    if parameter_count(config) >= LARGE:
        return halves.fastest_half(), "half the memory of a large model"
    return torch.float32, "fastest on a CPU for a small model"


def check_quantization(kind: str, device: torch.device) -> None:
    """Raise DeviceError for a device on which weights of one byte would be slower or do not run."""
    if kind not in ("int8", "fp8"):
        raise DeviceError(f"{kind!r} is no quantization", hint="--quantize int8 or fp8")
    if device.type == "cpu":
        refusal = "a CPU has no 8-bit floats" if kind == "fp8" else packed_int8.refusal()
        if refusal is not None:
            hint = "leave --quantize out" if kind == "int8" else "--quantize int8"
            raise DeviceError(f"--quantize {kind} is of no use here: {refusal}", hint=hint)
        return
    if device.type != "cuda":
        raise DeviceError(
            f"--quantize {kind} has no kernels for {device.type}; the weights would be widened at each step",
            hint="leave --quantize out, or --device cpu",
        )
    if kind == "fp8" and torch.cuda.get_device_capability(device) < (8, 9):
        raise DeviceError(
            "this GPU has no 8-bit floats (they begin with compute capability 8.9)", hint="--quantize int8"
        )


def make_deterministic() -> None:
    """Only kernels that give the same bits each time; where torch has none it raises. On a CPU they all do."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA's libraries start
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
