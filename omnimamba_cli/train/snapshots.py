"""Snapshots of a run: tensors in safetensors, the rest in JSON, whole or not at all, the last few kept. No pickle.

Beside them stand their checksums, as `sha256sum -c` reads them: a disk that lies is found out before training goes on.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from omnimamba_cli.errors import InputError, file_reason

TENSORS, STATE, SUMS = "state.safetensors", "state.json", "SHA256SUMS"
NAME = re.compile(r"step-(\d{8})$")


@dataclass(frozen=True)
class Snapshot:
    """One snapshot in memory."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]  # Any: JSON


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checksums(folder: Path) -> str:
    """What SUMS holds of a snapshot: a line for each of its files."""
    lines = []
    for name in (TENSORS, STATE):
        with (folder / name).open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n")
    return "".join(lines)


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], *, keep: int) -> Path:
    """Write folder/step-NNNNNNNN and drop all but the newest `keep`. Raises InputError when it cannot be written."""
    target = folder / f"step-{step:08d}"
    temporary, aside = (folder / f".{target.name}.{secrets.token_hex(4)}.partial" for _ in range(2))
    try:
        temporary.mkdir(parents=True)
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, temporary / TENSORS)
        (temporary / STATE).write_text(json.dumps({"step": step, **state}), encoding="utf-8")
        (temporary / SUMS).write_text(checksums(temporary), encoding="ascii")
        for part in (*(temporary / name for name in (TENSORS, STATE, SUMS)), temporary):
            _sync(part)
        if target.exists():  # not removed first: a run that is killed meanwhile would have half of it
            target.rename(aside)
        temporary.rename(target)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        reason = file_reason(error) if isinstance(error, OSError) else str(error)
        raise InputError(f"{target} cannot be written: {reason}", hint="free some space, then --resume") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(aside, ignore_errors=True)
    # later ones are damaged and were passed over: they must not count, or this one would go
    for old in [p for p in newest_first(folder) if p.name <= target.name][keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def newest_first(folder: Path) -> Iterator[Path]:
    """The snapshots of a run."""
    found = [p for p in folder.iterdir() if NAME.match(p.name)] if folder.is_dir() else []
    return iter(sorted(found, key=lambda p: p.name, reverse=True))


def load(path: Path) -> Snapshot:
    """One snapshot. Raises InputError for a damaged one."""
    try:
        if (path / SUMS).read_text(encoding="ascii") != checksums(path):
            raise ValueError(f"its files are not those of {SUMS}")
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        with safe_open(path / TENSORS, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        return Snapshot(step=int(state["step"]), tensors=tensors, state=state)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(f"{path} is damaged ({error})", hint="remove it") from error


def latest(folder: Path) -> tuple[Snapshot | None, list[str]]:
    """The newest snapshot that can be read, and a line for each newer one that cannot; without one, for all."""
    broken = []
    for path in newest_first(folder):
        try:
            return load(path), [f"{message}; using the one before" for message in broken]
        except InputError as error:
            broken.append(error.message)
    return None, broken
