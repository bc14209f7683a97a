"""--config FILE.toml of the commands that make training data and models: the options of one run.

An option on the command line wins over the file. `command` names the command that the file is for. Paths are as on the
command line, relative to where the command runs.
"""

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from omnimamba_cli.cli import toml_options
from omnimamba_cli.cli.app import load_command
from omnimamba_cli.cli.toml_options import Values
from omnimamba_cli.errors import ConfigError

COMMAND = "command"
# options of one call, not of the run: never in the file
OF_A_CALL = ("config", "resume", "force", "dry-run", "quiet", "verbose", "color", "json")


def _options(ctx: typer.Context) -> dict[str, inspect.Parameter]:
    """The command's options that a file may set, by long name."""
    command = load_command(str(ctx.info_name))
    assert not isinstance(command, typer.Typer)
    return {name: option for name, option in toml_options.options_of(command).items() if name not in OF_A_CALL}


def _read(ctx: typer.Context, path: Path | None) -> Path | None:
    """Callback of --config: the file's values become the defaults of this call."""
    if path is None or ctx.resilient_parsing:
        return path
    table = toml_options.read(path)
    meant = table.pop(COMMAND, ctx.info_name)
    if meant != ctx.info_name:
        raise ConfigError(f"{path} is for {meant}, this is {ctx.info_name}", hint=f"omnimamba {meant} --config {path}")
    values = toml_options.values_of(path, table, _options(ctx), str(ctx.info_name))
    ctx.default_map = {**(ctx.default_map or {}), **values}
    return path


ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE.toml",
        is_eager=True,
        callback=_read,
        help='This run\'s options, a line each: device = "cpu" is --device cpu. What is typed here wins over the '
        "file, the file over the defaults (OMNIMAMBA_CONFIG).",
        show_default=False,
    ),
]


def effective(ctx: typer.Context, **resolved: object) -> Values:
    """The options of this call, wherever they came from, in the form that _read takes; `resolved` values win."""
    values: Values = {COMMAND: ctx.info_name}
    for name, option in _options(ctx).items():
        value = resolved.get(option.name, ctx.params.get(option.name))
        if isinstance(value, list | tuple):
            values[name] = [_plain(item) for item in value]
        elif value is not None:
            values[name] = _plain(value)
    return {name: value for name, value in values.items() if value != []}


def _plain(value: Any) -> Any:  # Any: what options hold on one side, TOML on the other
    return value if isinstance(value, bool | int | float) else str(value)
