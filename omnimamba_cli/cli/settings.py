"""The user's config file: defaults for options, below environment variables and below what is typed.

model = "nano"            # for every command that has the option
[caption]
batch-size = 8
"""

import difflib
import inspect
import os
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omnimamba_cli.errors import UsageError

VARIABLE = "OMNIMAMBA_CONFIG"
RUNS = ("train-stage1", "train-stage2", "train-tokenizer")  # their --config is a file for one run, see config_file
SHARED = "model device dtype quantize seed offline quiet verbose color batch-size deterministic".split()
Values = dict[str, Any]  # Any: what TOML holds; the parser checks it as it does what is typed


def take_option(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """A command line without --config FILE and --no-config, and which file they name ("" is none, None: not said).

    Both are taken wherever they stand, up to "--"; a training command keeps its own --config.
    """
    own = next((word for word in arguments if not word.startswith("-")), None) in RUNS
    rest: list[str] = []
    chosen: str | None = None
    words = iter(arguments)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word == "--no-config":
            chosen = ""
        elif not own and word.startswith("--config="):
            chosen = word.removeprefix("--config=")
        elif not own and word == "--config":
            chosen = next(words, None)
            if chosen is None:
                raise UsageError("--config needs a file", hint="--config FILE, or --no-config")
        else:
            rest.append(word)
    return rest, chosen


def default_path() -> Path:
    """Where the file is, by the rules of the platform."""
    folder = os.environ.get("XDG_CONFIG_HOME", "")
    if os.path.isabs(folder):  # the rule says to pass over a relative one
        return Path(folder) / "omnimamba" / "config.toml"
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming") / "omnimamba" / "config.toml"
    return Path.home() / ".config" / "omnimamba" / "config.toml"


def read(chosen: str | None) -> tuple[Path, Values] | None:
    """The file that was chosen, or that OMNIMAMBA_CONFIG names, or the user's own where there is one."""
    named = chosen if chosen is not None else os.environ.get(VARIABLE)
    if named == "":
        return None
    path = Path(named) if named is not None else default_path()
    if named is None and not path.is_file():
        return None
    try:
        return path, tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {(error.strerror or 'cannot be read').lower()}", hint="--no-config") from None
    except ValueError as error:
        raise UsageError(f"{path}: is no TOML ({error})", hint="--no-config runs without it") from None


def defaults(path: Path, values: Values, name: str, command: Callable[..., object], commands: Sequence[str]) -> Values:
    """The file's values for one command, by parameter. Raises UsageError for what no option is called."""
    parameters = _options(command)
    found: Values = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            if key not in commands:
                raise _unknown(path, f"[{key}]", key, commands)
        elif key not in SHARED:
            raise _unknown(path, key, key, SHARED)
        elif key in parameters:
            found[parameters[key]] = value
    for key, value in values.get(name, {}).items():
        if key not in parameters:
            raise _unknown(path, f"[{name}] {key}", key, list(parameters))
        found[parameters[key]] = value
    return found


def _unknown(path: Path, shown: str, key: str, known: Sequence[str]) -> UsageError:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"it may hold {', '.join(known)}"
    return UsageError(f"{path}: {shown} is no option or command", hint=hint)


def _options(command: Callable[..., object]) -> dict[str, str]:
    """The long options of a command, without their dashes: the parameter of each."""
    found = {}
    for parameter in inspect.signature(command).parameters.values():
        for info in getattr(parameter.annotation, "__metadata__", ()):
            # in an annotation the first name stands where the default would
            for declared in (getattr(info, "default", None), *(getattr(info, "param_decls", None) or ())):
                if isinstance(declared, str) and declared.startswith("--"):
                    found[declared.split("/")[0].removeprefix("--")] = parameter.name
    return found
