"""Groups of options: a dataclass in a command's signature stands for its fields, each of which is an option.

@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    clip: Annotated[float, typer.Option("--clip")] = 1.0

@takes_groups
def command(ctx: typer.Context, loop: LoopOptions) -> None: ...
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

Result = TypeVar("Result")


def takes_groups(command: Callable[..., Result]) -> Callable[..., Result]:
    """The command as Typer sees it: each group replaced by its fields, all parameters keyword-only."""
    groups: dict[str, type] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        kind = parameter.annotation
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            groups[parameter.name] = kind
            parameters += _fields(kind)
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def run(**values: Any) -> Result:  # Any: whatever the options hold
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
        return command(**values)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what inspect.signature looks for
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _fields(group: type) -> list[inspect.Parameter]:
    """A group's fields as parameters."""
    hints = get_type_hints(group, include_extras=True)
    missing, empty = dataclasses.MISSING, inspect.Parameter.empty
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=empty if field.default is missing else field.default,
            annotation=hints[field.name],
        )
        for field in dataclasses.fields(group)
    ]
