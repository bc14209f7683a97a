"""How tensors are stored in files: their precision, and the 8-bit form. Tensors in, tensors or entries out; no I/O.

8-bit: a weight of two or more dimensions and at least 4,096 elements is int8 under its NAME, with one fp16 scale
for each output row under NAME::scale; row = int8 * scale, scale = absmax / 127, rounded to nearest. The rest is fp16.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from omnimamba_cli.engine.safetensors_io import Entry, Header
from omnimamba_cli.errors import CheckpointError

Storage = Literal["keep", "fp32", "fp16", "bf16", "int8"]
STORAGES: tuple[Storage, ...] = ("keep", "fp32", "fp16", "bf16", "int8")
FLOATS: dict[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SCALE = "::scale"
INT8_MIN_ELEMENTS = 4096  # below this an int8 weight saves less than its scales are worth
LARGEST = 127
SLAB = 1 << 20  # elements quantized at a time

# In half precision exp(A_log) and softplus(dt_bias) lose the digits that decide how long the state remembers: over a
# thousand steps exp(dt * A) compounds the error. A few numbers a head, so they stay float32 in memory and in files.
FLOAT32_NAMES = (".A_log", ".dt_bias", ".D")


def is_float32(name: str) -> bool:
    """True for the parameters that are float32 whatever the dtype of the model."""
    return name.endswith(FLOAT32_NAMES)


def _becomes_int8(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim >= 2 and tensor.numel() >= INT8_MIN_ELEMENTS


def quantize(name: str, tensor: Tensor) -> tuple[Tensor, Tensor]:
    """int8 values of the tensor's shape and an fp16 scale (rows). Quantizing what dequantize gives repeats both."""
    # in slabs: the float32 copies of a large embedding then stay small
    rows = tensor.detach().flatten(1)
    slabs = [_quantize_rows(slab) for slab in torch.split(rows, max(1, SLAB // rows.shape[1]))]
    scale = torch.cat([scale for _, scale in slabs])
    if not torch.isfinite(scale).all():
        raise CheckpointError(f"{name} holds NaN, infinity or values too large for 8-bit storage")
    return torch.cat([values for values, _ in slabs]).reshape(tensor.shape), scale


def _quantize_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    rows = rows.to("cpu", torch.float32)
    largest = rows.abs().amax(dim=1, keepdim=True)
    scale = (largest / LARGEST).half()
    step = scale.float()
    values = (rows / torch.where(step > 0, step, 1.0)).round().clamp(-LARGEST, LARGEST)
    # a row's largest value becomes 127 even where the rounded scale would make it 126, so that the scale repeats
    values = torch.where(rows.abs() == largest, rows.sign() * LARGEST, values)
    return torch.where(step > 0, values, 0.0).to(torch.int8), scale.flatten()


def _quantized(name: str, tensor: Tensor, part: int) -> Tensor:
    return quantize(name, tensor)[part]


def dequantize(values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight: int8 values times the scale of each row."""
    return (values.flatten(1).float() * scale.float()[:, None]).reshape(values.shape).to(dtype)


def cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in another float dtype. Raises CheckpointError if a finite value becomes infinite."""
    if tensor.dtype == dtype or not tensor.is_floating_point():
        return tensor
    result = tensor.detach().to(dtype)
    narrower = torch.finfo(dtype).max < torch.finfo(tensor.dtype).max
    if narrower and torch.isinf(result).any() and not torch.isinf(tensor).any():
        raise CheckpointError(
            f"{name} holds {float(tensor.abs().max()):.3g}; {dtype} ends at {torch.finfo(dtype).max:.3g}",
            hint="choose bf16 or fp32",
        )
    return result


def entries(tensors: Mapping[str, Tensor], storage: Storage) -> list[Entry]:
    """What to write so that `tensors` are stored in the given way; each is converted when its turn comes."""
    result = []
    for name, tensor in tensors.items():
        shape = tuple(tensor.shape)
        if storage == "int8" and _becomes_int8(tensor):
            int8, scales = (partial(_quantized, name, tensor, part) for part in (0, 1))
            result.append(Entry(name=name, dtype=torch.int8, shape=shape, make=int8))
            result.append(Entry(name=name + SCALE, dtype=torch.float16, shape=shape[:1], make=scales))
            continue
        dtype = stored_dtype(name, tensor.dtype, storage)
        result.append(Entry(name=name, dtype=dtype, shape=shape, make=partial(cast, name, tensor, dtype)))
    return result


def stored_dtype(name: str, dtype: torch.dtype, storage: Storage) -> torch.dtype:
    """The dtype in which a tensor that is not int8 is stored."""
    if not dtype.is_floating_point:
        return dtype
    if is_float32(name):
        return torch.float32
    return dtype if storage == "keep" else FLOATS.get(storage, torch.float16)


def is_int8(name: str, header: Header) -> bool:
    """True for a weight stored as int8 beside a scale for each of its rows."""
    info, scale = header.tensors[name], header.tensors.get(name + SCALE)
    whole = scale is not None and scale.dtype == torch.float16 and scale.shape == info.shape[:1]
    return info.dtype == torch.int8 and len(info.shape) >= 2 and whole


def logical_shapes(header: Header) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights in a file; the scales of int8 weights are left out."""
    scales = {name + SCALE for name in header.tensors if is_int8(name, header)}
    return {name: shape for name, shape in header.shapes.items() if name not in scales}


def stored(name: str, header: Header) -> tuple[str, ...]:
    """Names of the stored tensors that a weight is made of, in the order in which `decode` reads them."""
    return (name, name + SCALE) if is_int8(name, header) else (name,)


def decoded_dtype(name: str, header: Header, dtype: torch.dtype | None) -> torch.dtype:
    """The dtype that `decode` gives a weight: `dtype`, or with None the stored one (float32 for int8)."""
    stored = header.tensors[name].dtype
    if is_int8(name, header):
        return torch.float32 if is_float32(name) or dtype is None else dtype
    if not stored.is_floating_point:
        return stored
    return torch.float32 if is_float32(name) else dtype or stored


def decode(name: str, header: Header, read: Callable[[str], Tensor], dtype: torch.dtype | None) -> Tensor:
    """A weight from a file, in its `decoded_dtype`; `read` gives a stored tensor by name."""
    target = decoded_dtype(name, header, dtype)
    if is_int8(name, header):
        return dequantize(read(name), read(name + SCALE), target)
    return cast(name, read(name), target)
