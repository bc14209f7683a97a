"""--config FILE.toml: options written down. An option on the command line wins over the file.

A key is an option's long name, such as batch-mmu (or batch_mmu); `command` names the command that the file is for.
Paths are as on the command line, relative to where the command runs.
"""

import difflib
import inspect
import tomllib
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import typer

from omnimamba_cli.cli.app import load_command
from omnimamba_cli.errors import ConfigError, InputError

COMMAND = "command"
KINDS: dict[type, tuple[tuple[type, ...], str]] = {
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    bool: ((bool,), "true or false"),
}
# about one call, not about the run: never read from a file, never written into one
OF_A_CALL = ("config", "resume", "force", "dry-run", "quiet", "verbose", "color", "json", "help")


def _options(ctx: typer.Context) -> dict[str, Any]:  # Any: the parser's own option objects, which move between versions
    """The command's options that a file may set, by long name."""
    found = {}
    for option in ctx.command.params:
        names = [name[2:] for name in option.opts if name.startswith("--")]
        if names and names[0] not in OF_A_CALL:
            found[names[0]] = option
    return found


def _read(ctx: typer.Context, path: Path | None) -> Path | None:
    """The file's values become the defaults of this call."""
    if path is None or ctx.resilient_parsing:
        return path
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except ValueError as error:  # of TOML or of UTF-8
        raise InputError(f"{path} is no valid TOML: {error}") from None
    meant = data.pop(COMMAND, ctx.info_name)
    if meant != ctx.info_name:
        raise ConfigError(f"{path} is for {meant}, this is {ctx.info_name}", hint=f"omnimamba {meant} --config {path}")
    options = _options(ctx)
    hints = inspect.signature(load_command(str(ctx.info_name))).parameters
    values = {}
    for key, value in data.items():
        name = key.replace("_", "-")
        if name not in options:
            near = difflib.get_close_matches(name, options, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"omnimamba {ctx.info_name} --help lists them"
            raise ConfigError(f"{path}: {ctx.info_name} has no option {key!r}", hint=hint)
        field = options[name].name
        values[field] = _checked(value, hints[field].annotation, f"{path}: {key}")
    ctx.default_map = {**(ctx.default_map or {}), **values}
    return path


def _checked(value: Any, annotation: Any, where: str) -> Any:  # Any: TOML on one side, type hints on the other
    """The value if it is of the option's kind; the parser checks its range. A single value may stand for a list."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _checked(value, arguments[0], where)
    if origin in (Union, UnionType):
        return _checked(value, next(kind for kind in arguments if kind is not type(None)), where)
    if origin is list:
        return [_checked(item, arguments[0], where) for item in (value if isinstance(value, list) else [value])]
    kinds, meant = KINDS.get(annotation, ((str,), "text in quotes"))
    # in Python true is a number
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise ConfigError(f"{where} is {value!r}; it must be {meant}")
    return value


ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE.toml",
        is_eager=True,
        callback=_read,
        help="Options from a file: a line batch-mmu = 8 is --batch-mmu 8. Options given here win.",
        show_default=False,
    ),
]


def effective(ctx: typer.Context, **resolved: object) -> dict[str, Any]:  # Any: what TOML can hold
    """The options of this call, whatever they came from, as _read takes them; `resolved` by parameter name wins."""
    values: dict[str, Any] = {COMMAND: ctx.info_name}
    for name, option in _options(ctx).items():
        value = resolved.get(option.name, ctx.params.get(option.name))
        if isinstance(value, list | tuple):
            values[name] = [_plain(item) for item in value]
        elif value is not None:
            values[name] = _plain(value)
    return {name: value for name, value in values.items() if value != []}


def _plain(value: object) -> object:
    return value if isinstance(value, bool | int | float) else str(value)
