"""The user's config file: defaults for options, below environment variables and below what is typed.

model = "nano"            # for every command that has the option
[caption]
batch-size = 8
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from omnimamba_cli.cli import toml_options
from omnimamba_cli.cli.toml_options import Values
from omnimamba_cli.errors import ConfigError, UsageError, nearest
from omnimamba_cli.folders import user_folder

VARIABLE = "OMNIMAMBA_CONFIG"
# commands whose --config is a file for one run, see config_file
RUNS = ("train-stage1", "train-stage2", "train-tokenizer", "tokenize")
SHARED = "model device dtype quantize seed offline quiet verbose color batch-size deterministic".split()


def take_option(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """The command line without --config FILE and --no-config, and the file that they name.

    "" is no file (--no-config), None: neither option was given. They may stand anywhere before "--"; the commands of
    RUNS keep their own --config.
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
    """Where the user's own file would be."""
    return user_folder("config") / "config.toml"


def read(chosen: str | None) -> tuple[Path, Values] | None:
    """Path and values of the chosen file, or of OMNIMAMBA_CONFIG's, or of the user's own; None without any."""
    named = chosen if chosen is not None else os.environ.get(VARIABLE)
    if named == "":
        return None
    path = Path(named) if named is not None else default_path()
    if named is None and not path.is_file():
        return None
    return path, toml_options.read(path, hint="--no-config runs without it")


def defaults(path: Path, values: Values, name: str, command: Callable[..., object], commands: Sequence[str]) -> Values:
    """The file's values for one command, by parameter. Raises ConfigError for unknown names and wrong values."""
    options = toml_options.options_of(command)
    sections = {key: value for key, value in values.items() if isinstance(value, Mapping)}
    for key in sections:
        if key not in commands:
            hint = nearest(key, commands) or "omnimamba --help lists them"
            raise ConfigError(f"{path}: [{key}] is no command", hint=hint)
    shared = {key: value for key, value in values.items() if key not in sections}
    for key in shared:
        if key.replace("_", "-") not in SHARED:
            hint = nearest(key, SHARED) or f"put it under a [command]; for all there are {', '.join(SHARED)}"
            raise ConfigError(f"{path}: {key!r} is no option for all commands", hint=hint)
    mine = {key: value for key, value in shared.items() if key.replace("_", "-") in options}
    return {
        **toml_options.values_of(path, mine, options, name),
        **toml_options.values_of(path, sections.get(name, {}), options, name, f"[{name}] "),
    }
