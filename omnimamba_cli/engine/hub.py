"""Where a model is: a directory, the bundled one, an installed one, or a repository on the Hugging Face Hub."""

import difflib
import os
import re
from pathlib import Path

from omnimamba_cli.engine.checkpoint import FILES, is_model_directory
from omnimamba_cli.errors import CheckpointError, DownloadError

PACKAGE = Path(__file__).resolve().parent.parent
HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def bundled_folders() -> list[Path]:
    """Where the models that come with the program are: inside the wheel, or beside the package in a checkout."""
    return [PACKAGE / "weights", PACKAGE.parent / "weights"]


def user_folder() -> Path:
    """Where a user's own models are installed."""
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "omnimamba"


def installed() -> list[tuple[str, Path]]:
    """(name, directory) of every model that a bare name finds, by name; where two have one name, the nearer one."""
    found: dict[str, Path] = {}
    for folder in [Path("weights"), user_folder(), *bundled_folders()]:
        if not folder.is_dir():
            continue
        for path in sorted(folder.iterdir()):
            if is_model_directory(path):
                found.setdefault(path.name, path)
    return sorted(found.items())


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
    near = difflib.get_close_matches(name, models, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    known = f"installed: {', '.join(models)}; " if models else ""
    return f"{known}a directory and a Hub id (org/name) work too"


def _download(repo: str, revision: str | None) -> Path:
    from huggingface_hub import errors, snapshot_download  # here: importing it costs half a second of every command

    where = f"{repo}@{revision}" if revision else repo
    try:
        path = Path(snapshot_download(repo, revision=revision, allow_patterns=list(FILES)))
    except errors.RepositoryNotFoundError:
        raise DownloadError(
            f"{where} could not be downloaded: the Hub has no such repository, or it asks for a login",
            hint="check the name, or log in: hf auth login",
        ) from None
    except errors.RevisionNotFoundError:
        raise DownloadError(f"{where} could not be downloaded: the repository has no such revision") from None
    except Exception as error:  # its network errors are of another library in almost every release
        raise _failed(where, error) from error
    if not is_model_directory(path):
        raise CheckpointError(
            f"{where} holds no model directory (no config.json)",
            hint="download its files and run: omnimamba convert FILE... DIRECTORY",
        )
    return path


def _failed(where: str, error: Exception) -> DownloadError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return DownloadError(
        f"{where} could not be downloaded: {first}", hint="check the network, or give a model directory instead"
    )
