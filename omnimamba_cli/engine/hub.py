"""Where a model is: a directory, the bundled one, an installed one, or a repository on the Hugging Face Hub."""

import os
import re
from pathlib import Path

from omnimamba_cli.config import Task
from omnimamba_cli.engine import remote
from omnimamba_cli.engine.checkpoint import FILES, is_model_directory
from omnimamba_cli.errors import CheckpointError, nearest
from omnimamba_cli.folders import user_folder

PACKAGE = Path(__file__).resolve().parent.parent
PUBLISHED, BUNDLED = "omnimamba-1.3b", "nano"
HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def bundled_folders() -> list[Path]:
    """Where the models that come with the program are: inside the wheel, or beside the package in a checkout."""
    return [PACKAGE / "weights", PACKAGE.parent / "weights"]


def install_folder() -> Path:
    """Where a new model goes: weights/ of the checkout that we are in, else the user's folder."""
    here = Path("weights")
    return here if here.is_dir() and Path("omnimamba_cli", "engine").is_dir() else user_folder("data")


def installed() -> list[tuple[str, Path]]:
    """(name, directory) of every model that a bare name finds, by name; where two have one name, the nearer one."""
    found: dict[str, Path] = {}
    for folder in [Path("weights"), user_folder("data"), *bundled_folders()]:
        if not folder.is_dir():
            continue
        for path in sorted(folder.iterdir()):
            # a hidden one is not finished
            if is_model_directory(path) and not path.name.startswith("."):
                found.setdefault(path.name, path)
    return sorted(found.items())


def default_model(task: Task | None) -> str:
    """The model that is used when none is named: the published one where it is installed and can do the task."""
    needed = {"mmu": ["vision"], "t2i": ["vq"], None: ["vision", "vq"]}[task]
    directory = dict(installed()).get(PUBLISHED)
    files = [f"{part}.safetensors" for part in ("model", *needed)] + ["tokenizer.json"]
    return PUBLISHED if directory is not None and all((directory / f).is_file() for f in files) else BUNDLED


def resolve(name: str) -> Path:
    """The directory of a model given by path, by name, or as "org/name[@revision]" of the Hub.

    A bare name never touches the network. Raises CheckpointError for what is not there (with the nearest names) and
    DownloadError when the Hub cannot give it.
    """
    path = Path(name).expanduser()
    if name and is_model_directory(path):
        return path
    if _is_bare(name):
        return _installed(name)
    match = HUB_ID.fullmatch(name)
    if match and not path.exists() and not Path(name.split("/")[0]).exists():
        return _download(match["repo"], match["revision"])
    if path.is_dir():
        raise CheckpointError(
            f"{path} is no model directory: it has no config.json", hint="make one: omnimamba convert SRC... DIRECTORY"
        )
    if path.exists():
        raise CheckpointError(f"{path} is a file, a model is a directory", hint=f"omnimamba convert {path} DIRECTORY")
    raise CheckpointError(f"there is no model directory {path}", hint=_hint(path.name))


def _is_bare(name: str) -> bool:
    return os.sep not in name and "/" not in name and name not in (".", "..", "~")


def _installed(name: str) -> Path:
    models = dict(installed())
    if name in models:
        return models[name]
    what = (
        f"{name} is here, but is no model directory" if name and Path(name).exists() else f"there is no model {name!r}"
    )
    raise CheckpointError(what, hint=_hint(name))


def _hint(name: str) -> str:
    models = dict(installed())
    known = f"installed: {', '.join(models)}; " if models else ""
    return nearest(name, models, cutoff=0.5) or f"{known}a directory and a Hub id (org/name) work too"


def _download(repo: str, revision: str | None) -> Path:
    where = f"{repo}@{revision}" if revision else repo
    path = remote.snapshot(repo, revision, FILES)
    if not is_model_directory(path):
        raise CheckpointError(
            f"{where} holds no model directory (no config.json)",
            hint="download its files and run: omnimamba convert FILE... DIRECTORY",
        )
    return path
