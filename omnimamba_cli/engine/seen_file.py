"""The file that Seen.save writes: a model's state after a picture, in safetensors, and which model it belongs to."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from omnimamba_cli import __version__
from omnimamba_cli.config import ModelConfig
from omnimamba_cli.engine.safetensors_io import read_header, read_safetensors, write_safetensors
from omnimamba_cli.errors import CheckpointError, InputError
from omnimamba_cli.model.state import InferenceState

FORMAT, VERSION = "omnimamba-state", "1"
SAMPLE = 4096  # bytes of each tensor that tell two models apart


def fingerprint(directory: Path, config: ModelConfig) -> str:
    """Identifies the model that a state belongs to: a SHA-256 of its sizes and the first 4 KiB of each tensor.

    Training changes nearly every value of a tensor, so its beginning is enough; reading all of 6 GB would take longer
    than looking at the picture again.
    """
    c = config.to_dict()
    digest = hashlib.sha256(json.dumps([c[k] for k in ("backbone", "text", "towers", "mmu_positions")]).encode())
    for part in ("model", "vision"):
        path = directory / f"{part}.safetensors"
        header = read_header(path)
        with path.open("rb") as file:
            for name, info in sorted(header.tensors.items()):
                digest.update(f"{name} {info.dtype} {info.shape}\n".encode())
                file.seek(header.data_start + info.start)
                digest.update(file.read(min(SAMPLE, info.end - info.start)))
    return digest.hexdigest()


def write(
    path: Path, state: InferenceState, turns: int, directory: Path, config: ModelConfig, *, overwrite: bool
) -> None:
    """See Seen.save. Metadata: format, version, model, fingerprint, dtype, position, turns, made_by."""
    if os.path.lexists(path) and not overwrite:
        raise InputError(f"{path}: exists and is not overwritten", hint="use --force, or another name")
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "model": config.name,
        "fingerprint": fingerprint(directory, config),
        "dtype": str(state.conv.dtype).removeprefix("torch."),
        "position": str(state.position),
        "turns": str(turns),
        "made_by": f"omnimamba {__version__}",
    }
    write_safetensors(path, {"conv": state.conv, "ssm": state.ssm}, metadata)


def read(path: Path, directory: Path, config: ModelConfig) -> tuple[InferenceState, int]:
    """The state and how many turns are in it, on the CPU as it was stored.

    Raises InputError for a file that is missing or no state, or another version's or another model's, by its name.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file", hint="make one: omnimamba caption fox.png --save-state fox.state")
    try:
        tensors, said = read_safetensors(path)
    except CheckpointError as error:
        raise InputError(f"{path}: no state of a picture ({error.message.removeprefix(f'{path}: ')})") from None
    if said.get("format") != FORMAT:
        raise InputError(f"{path}: is a safetensors file, but no state of a picture")
    if said.get("version") != VERSION:
        raise InputError(
            f"{path}: is a state of format {said.get('version')}, this program reads {VERSION}",
            hint="look at the picture again",
        )
    name = said.get("model", "an unnamed model")
    if said.get("fingerprint") != fingerprint(directory, config):
        other = f"another {name}: its weights differ" if name == config.name else f"{name}, not of {config.name}"
        raise InputError(f"{path}: is a state of {other}", hint="look at the picture again, or name its model with -m")
    position, turns = said.get("position", ""), said.get("turns", "")
    if not (_fits(tensors, config) and position.isdigit() and turns.isdigit() and int(position) < config.mmu_positions):
        raise InputError(f"{path}: is a damaged state", hint="look at the picture again")
    return InferenceState(tensors["conv"], tensors["ssm"], int(position)), int(turns)


def _fits(tensors: Mapping[str, Tensor], config: ModelConfig) -> bool:
    """Whether the tensors are a whole state of one row of the model, and finite."""
    like = InferenceState.zeros(config.backbone, 1, torch.device("meta"), torch.float32)
    wanted = {"conv": like.conv.shape, "ssm": like.ssm.shape}
    if {name: tensor.shape for name, tensor in tensors.items()} != wanted:
        return False
    return all(t.is_floating_point() and bool(t.isfinite().all()) for t in tensors.values())
