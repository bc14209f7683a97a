"""safetensors files: verified headers, mapped tensors, and a writer that needs the memory of one tensor.

The library's own writer wants all tensors in memory at once; the one here asks for one after another. `partial` is how
other files, too, are written whole or not at all. Knows no model.
"""

import json
import math
import os
import secrets
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from omnimamba_cli.errors import CheckpointError, InputError, file_reason
from omnimamba_cli.json_text import parse

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
MAX_HEADER = 100_000_000  # bytes; the format's own limit


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """One tensor of a header; start and end count bytes from the end of the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a safetensors file says it holds."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    data_start: int  # bytes of the file before its data

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape."""
        return {name: info.shape for name, info in self.tensors.items()}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A tensor to be written: what it will be, and how to get it when its turn comes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path}: {why}", hint="the file is damaged or was cut off: copy or download it again")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:  # Any: JSON
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError("a name stands twice")
    return dict(pairs)


def _parse(path: Path, text: bytes) -> tuple[dict[str, Any], dict[str, str]]:  # Any: JSON
    try:
        data = parse(text, pairs=_unique)
    except ValueError as error:
        raise _damaged(path, f"its header is no valid JSON ({error})") from None
    if not isinstance(data, dict):
        raise _damaged(path, "its header is no JSON object")
    metadata = data.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _damaged(path, "its __metadata__ is not a table of strings")
    return data, metadata


def _tensor_info(path: Path, name: str, item: Any) -> TensorInfo:  # Any: JSON
    try:
        code, shape, (start, end) = item["dtype"], tuple(item["shape"]), item["data_offsets"]
        whole = all(type(n) is int and n >= 0 for n in (*shape, start, end))
        known = code in DTYPES
    except (KeyError, TypeError, ValueError):
        raise _damaged(path, f"the header entry of {name} lacks dtype, shape or data_offsets") from None
    if not whole:
        raise _damaged(path, f"the header entry of {name} has a shape or offset that is no whole number")
    if not known:
        raise CheckpointError(f"{path}: {name} is stored as {code}, which is not one of {', '.join(DTYPES)}")
    info = TensorInfo(dtype=DTYPES[code], shape=shape, start=start, end=end)
    if math.prod(shape) * info.dtype.itemsize != end - start:
        raise _damaged(path, f"{name} is {shape} of {code}, but its offsets span {end - start} bytes")
    return info


def read_header(path: Path) -> Header:
    """The verified header of a safetensors file.

    Raises CheckpointError for a missing, empty, truncated or inconsistent file: tensors must follow each other without
    gaps or overlaps, and end where the file ends.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            text = file.read(length) if length <= min(size, MAX_HEADER) else b""
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {file_reason(error)}") from None
    if size == 0:
        raise _damaged(path, "the file is empty")
    if len(start) < 8 or len(text) != length or not length:
        raise _damaged(path, f"no safetensors header in a file of {size:,} bytes")
    data, metadata = _parse(path, text)
    tensors = {name: _tensor_info(path, name, item) for name, item in data.items()}
    place = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if info.start != place:
            raise _damaged(path, f"{name} starts at byte {info.start:,} of the data, where {place:,} is due")
        place = info.end
    if place != size - 8 - length:
        raise _damaged(path, f"the header describes {place:,} bytes of data, the file has {size - 8 - length:,}")
    return Header(tensors=tensors, metadata=metadata, data_start=8 + length)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata). The tensors lie in the mapped file: they take memory only where they are read.

    Raises CheckpointError as read_header does.
    """
    header = read_header(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in header.tensors}, header.metadata
    except (SafetensorError, OSError) as error:
        raise _damaged(path, str(error)) from None


def read_tensor(path: Path, header: Header, name: str) -> Tensor:
    """One tensor, read instead of mapped: for one that is converted anyway, so that no mapped pages stay in memory."""
    info = header.tensors[name]
    data = torch.empty(info.end - info.start, dtype=torch.uint8)
    with path.open("rb") as file:  # opened anew, because several threads read at once
        file.seek(header.data_start + info.start)
        if data.numel() and file.readinto(data.numpy().data) != data.numel():
            raise CheckpointError(f"{path} was cut off while it was read")
    return data.view(info.dtype).reshape(info.shape)


def entry(name: str, tensor: Tensor) -> Entry:
    """An entry that writes the tensor as it is."""
    return Entry(name=name, dtype=tensor.dtype, shape=tuple(tensor.shape), make=lambda: tensor)


def _write_tensor(file: BinaryIO, item: Entry) -> None:
    tensor = item.make()
    assert (tensor.dtype, tuple(tensor.shape)) == (item.dtype, item.shape), item.name
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    if flat.numel():
        file.write(flat.view(torch.uint8).numpy().data)


@contextmanager
def partial(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`; the file is renamed to `path` if the block ends well, else removed."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {file_reason(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_entries(path: Path, entries: Sequence[Entry], metadata: Mapping[str, str] | None = None) -> int:
    """Write a safetensors file, one tensor in memory at a time; returns its size in bytes.

    The same entries give the same bytes, in whatever order they come. Atomic: `path` is the whole file or
    untouched. Raises InputError if it cannot be written.
    """
    # widest first keeps every tensor aligned to its own width, which mapping needs
    order = sorted(entries, key=lambda item: (-item.dtype.itemsize, item.name))
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    place = 0
    for item in order:
        if item.name in header:
            raise ValueError(f"{item.name} stands twice among the entries")
        end = place + item.size_bytes
        header[item.name] = {"dtype": CODES[item.dtype], "shape": list(item.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with partial(path) as temporary, temporary.open("xb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for item in order:
            _write_tensor(file, item)
        file.flush()
        os.fsync(file.fileno())
    return 8 + len(text) + place


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> int:
    """Write tensors as they are; see write_entries."""
    return write_entries(path, [entry(name, tensor) for name, tensor in tensors.items()], metadata)
