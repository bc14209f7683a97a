"""Options in TOML files: reading and checking them, for settings.py and config_file.py.

A key is an option's long name without its dashes, such as batch-mmu (or batch_mmu).
"""

import inspect
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from omnimamba_cli.errors import ConfigError, InputError, file_reason, nearest

Values = dict[str, Any]  # Any: what TOML holds
KINDS: dict[type, tuple[tuple[type, ...], str]] = {
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    bool: ((bool,), "true or false"),
}


def read(path: Path, *, hint: str | None = None) -> Values:
    """What a file holds. Raises InputError for one that cannot be read or is no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: {file_reason(error)}", hint=hint) from None
    except ValueError as error:  # of TOML or of UTF-8
        raise InputError(f"{path} is no valid TOML: {error}", hint=hint) from None


def options_of(command: Callable[..., object]) -> dict[str, inspect.Parameter]:
    """The long options of a command, without their dashes: the parameter of each."""
    found = {}
    for parameter in inspect.signature(command).parameters.values():
        for info in getattr(parameter.annotation, "__metadata__", ()):
            # in an annotation the first name stands where the default would
            for declared in (getattr(info, "default", None), *(getattr(info, "param_decls", None) or ())):
                if isinstance(declared, str) and declared.startswith("--"):
                    found[declared.split("/")[0].removeprefix("--")] = parameter
    return found


def values_of(
    path: Path, table: Mapping[str, Any], options: Mapping[str, inspect.Parameter], command: str, section: str = ""
) -> Values:
    """The values of a file's table, by parameter; `section` is the table's heading, for errors.

    Raises ConfigError for an unknown option, or a value of the wrong type.
    """
    found: Values = {}
    for key, value in table.items():
        name = key.replace("_", "-")
        if name not in options:
            hint = f"omnimamba {command} --help lists them"
            raise ConfigError(f"{path}: {command} has no option {key!r}", hint=nearest(name, options) or hint)
        parameter = options[name]
        found[parameter.name] = _checked(value, parameter.annotation, f"{path}: {section}{key}")
    return found


def _checked(value: Any, annotation: Any, where: str) -> Any:  # Any: TOML on one side, type hints on the other
    """The value, if its type is the option's; the parser checks its range later. One value may stand for a list."""
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
