"""A file given to `convert`: what it is, told by its content, and its tensors, mapped. Pickles never run code."""

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from omnimamba_cli.engine.safetensors_io import read_safetensors
from omnimamba_cli.errors import CheckpointError, InputError, file_reason
from omnimamba_cli.json_text import parse
from omnimamba_cli.model import convert as names

Kind = Literal["published", "base", "vq", "tower", "tokenizer"]
LABELS: dict[Kind, str] = {
    "published": "an OmniMamba checkpoint",
    "base": "a plain Mamba-2 language model",
    "vq": "an image tokenizer",
    "tower": "an image encoder",
    "tokenizer": "a text tokenizer",
}
TARGETS: dict[Kind, str] = {
    "published": "model.safetensors",
    "base": "model.safetensors",
    "vq": "vq.safetensors",
    "tower": "vision.safetensors",
    "tokenizer": "tokenizer.json",
}
WRAPPERS = ("model", "state_dict", "module")  # keys under which trainers put the tensors


class UnknownFileError(CheckpointError):
    """A file that is sound, but nothing convert knows."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file that convert knows."""

    path: Path
    kind: Kind
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What it is, in words."""
        return LABELS[self.kind]

    @property
    def file(self) -> str:
        """The file of a model directory that it becomes."""
        return TARGETS[self.kind]

    @property
    def tower_width(self) -> int:
        """Features a patch of a transformer encoder, by its position table; 0 for other encoders."""
        table = self.tensors.get("pos_embed")
        return int(table.shape[-1]) if table is not None else 0


def open_source(path: Path) -> Source:
    """Recognise a file by its content.

    Raises InputError if it cannot be read, CheckpointError if it is damaged, runs code or is nothing convert knows.
    """
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {file_reason(error)}") from None
    if not start:
        raise CheckpointError(f"{path} is empty", hint="download it again")
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the file itself", hint="fetch it with: git lfs pull")
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return _of_tensors(path, _read_pickle(path, zipped=start.startswith(b"PK")))
    if start[8:9] == b"{":
        return _of_tensors(path, read_safetensors(path)[0])
    if start.lstrip().startswith(b"{") and _is_tokenizer(path):
        return Source(path=path, kind="tokenizer")
    raise UnknownFileError(
        f"{path} is no checkpoint, image tokenizer, image encoder or tokenizer.json that convert knows",
        hint="omnimamba convert --help lists the files it takes",
    )


def _is_tokenizer(path: Path) -> bool:
    try:
        data = parse(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(data, dict) and "model" in data and "added_tokens" in data


def _read_pickle(path: Path, *, zipped: bool) -> dict[str, Tensor]:
    """The tensors of a torch file: mapped for the zip format, read for the older one."""
    try:
        data = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise _refused(path, str(error)) from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        first = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is damaged or no torch file: {first}", hint="download it again") from None
    return _tensors(path, data)


def _refused(path: Path, why: str) -> CheckpointError:
    name = re.search(r"GLOBAL (\S+)", why)
    if not name:
        return CheckpointError(f"{path} is damaged or no torch file", hint="download it again")
    return CheckpointError(
        f"{path} is refused: besides tensors it names {name[1]}, which loading it would run",
        hint="ask its author for a safetensors file",
    )


def _tensors(path: Path, data: Any) -> dict[str, Tensor]:  # Any: whatever the pickle holds
    for key in WRAPPERS:
        if isinstance(data, Mapping) and isinstance(data.get(key), Mapping):
            data = data[key]
            break
    if not isinstance(data, Mapping) or not data:
        raise CheckpointError(f"{path} holds no table of tensors")
    for name, value in data.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: {name!r} is a {type(value).__name__}, not a tensor")
    return dict(data)


def _of_tensors(path: Path, tensors: dict[str, Tensor]) -> Source:
    if names.is_published(tensors):
        return Source(path=path, kind="published", tensors=tensors)
    if names.is_mamba2_base(tensors):
        return Source(path=path, kind="base", tensors=tensors)
    if names.is_vq(tensors):
        return Source(path=path, kind="vq", tensors=tensors)
    if names.is_tower(tensors):
        return Source(path=path, kind="tower", tensors=tensors)
    if "text_embedding.weight" in tensors:
        raise CheckpointError(f"{path} is already in this program's format", hint=f"--model {path.parent}")
    first = next(iter(tensors), "nothing")
    raise UnknownFileError(f"{path} holds {len(tensors)} tensors of an unknown model (first: {first})")
