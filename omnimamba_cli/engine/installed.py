"""The models on this machine: what each can do and how large it is; removing one. Reads headers, no weights."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnimamba_cli.config import TASKS, Task
from omnimamba_cli.engine import checkpoint, downloading, hub, lock
from omnimamba_cli.engine.safetensors_io import read_header
from omnimamba_cli.engine.storage import FLOATS
from omnimamba_cli.errors import CheckpointError, InputError, OmniMambaError, file_reason
from omnimamba_cli.folders import user_folder


@dataclass(frozen=True, kw_only=True)
class Installed:
    """One installed model."""

    name: str
    directory: Path
    size_bytes: int
    tasks: tuple[Task, ...]  # what its files allow
    default_for: tuple[Task, ...]  # tasks for which it is used without --model
    storage: str  # of its weights; several are joined by a comma
    release: str | None  # the published model that a download made it of
    problem: str | None  # why it cannot be used

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "name": self.name,
            "directory": str(self.directory),
            "bytes": self.size_bytes,
            "tasks": list(self.tasks),
            "default_for": list(self.default_for),
            "dtype": self.storage,
            "release": self.release,
            "problem": self.problem,
        }


def listing() -> list[Installed]:
    """Every installed model, by name; a damaged one says what is wrong."""
    defaults = {task: hub.default_model(task) for task in TASKS}
    return [_look(name, directory, defaults) for name, directory in hub.installed()]


def _look(name: str, directory: Path, defaults: dict[Task, str]) -> Installed:
    storage, release, problem = "", None, None
    tasks: list[Task] = []
    try:
        checkpoint.read_config(directory)
        parts = checkpoint.part_sizes(directory)
        storage = ", ".join(sorted({_stored_as(directory / f"{part}.safetensors") for part in parts}))
        needs: dict[Task, set[str]] = {"mmu": {"model", "vision"}, "t2i": {"model", "vq"}}
        if (directory / checkpoint.TOKENIZER).is_file():
            tasks = [task for task in TASKS if needs[task] <= parts.keys()]
        if (found := lock.read(directory)) is not None:
            release, problem = found.release, lock.check(directory, found)
    except OmniMambaError as error:
        problem = error.message
    return Installed(
        name=name,
        directory=directory,
        size_bytes=_size(directory),
        tasks=tuple(tasks),
        default_for=tuple(task for task in tasks if defaults[task] == name),
        storage=storage,
        release=release,
        problem=problem,
    )


def _stored_as(path: Path) -> str:
    """The number format of most of a file's bytes."""
    header = read_header(path)
    if header.metadata.get("storage") == "int8":
        return "int8"
    names = {dtype: name for name, dtype in FLOATS.items()}
    sizes: dict[str, int] = {}
    for info in header.tensors.values():
        code = names.get(info.dtype, str(info.dtype))
        sizes[code] = sizes.get(code, 0) + info.end - info.start
    return max(sizes, key=lambda code: sizes[code], default="")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@dataclass(frozen=True, kw_only=True)
class Removal:
    """What removing a model deletes."""

    folders: tuple[Path, ...]
    size_bytes: int


def removal(name: str) -> Removal:
    """What removing a model of that name would delete: its directory, unfinished files, originals that were kept.

    Raises CheckpointError where nothing has that name, InputError for the model that comes with the program.
    """
    if os.sep in name or "/" in name or name in ("", ".", ".."):
        raise InputError(f"{name!r} is no name of an installed model", hint="omnimamba models")
    own = [Path("weights"), user_folder("data")]
    models = [folder / name for folder in own if checkpoint.is_model_directory(folder / name)]
    # the nearer one alone: it is the one that the name means
    found = models[:1] if models else []
    beside = found or [folder / name for folder in own]
    found += [d for m in beside for d in (downloading.staging(m), downloading.originals(m)) if d.is_dir()]
    bundled = [folder / name for folder in hub.bundled_folders()]
    if any(model.exists() and model.samefile(other) for model in found for other in bundled if other.exists()):
        raise InputError(f"{name} comes with the program and is not removed")
    if not found:
        if any(checkpoint.is_model_directory(path) for path in bundled):
            raise InputError(f"{name} comes with the program and is not removed")
        raise CheckpointError(f"there is no model {name!r}", hint="omnimamba models")
    return Removal(folders=tuple(found), size_bytes=sum(_size(folder) for folder in found))


def remove(what: Removal) -> list[Path]:
    """Delete it; returns the folders that stay because they hold other files. Raises InputError where it may not."""
    left = []
    for folder in what.folders:
        try:
            if folder.is_symlink():
                folder.unlink()
            elif not checkpoint.is_model_directory(folder):
                shutil.rmtree(folder)
            elif not _remove_model(folder):
                left.append(folder)
        except OSError as error:
            raise InputError(f"{folder} cannot be deleted: {file_reason(error)}") from None
    return left


def _remove_model(folder: Path) -> bool:
    """Delete a model's own files, config.json first, so that a half-deleted one is no model. False if others stay."""
    for name in (*checkpoint.FILES, checkpoint.LOCK):
        (folder / name).unlink(missing_ok=True)
    if any(folder.iterdir()):
        return False
    folder.rmdir()
    return True
