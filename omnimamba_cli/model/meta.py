"""Modules without memory of their own: with shapes alone, or sharing the tensors of others."""

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

M = TypeVar("M", bound=nn.Module)


class _NoInit(TorchFunctionMode):
    """Leaves weights as they are: without memory there is nothing to fill, and torch would load its compiler to try."""

    # Any: what torch calls it with
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return given["tensor"] if "tensor" in given else args[0]
        return func(*args, **given)


def on_meta(build: Callable[[], M]) -> M:
    """What `build` makes, on the meta device."""
    with torch.device("meta"), _NoInit():
        return build()


def sharing_copy(module: M) -> M:
    """A copy of the modules that shares every tensor with the original."""
    return copy.deepcopy(module, {id(t): t for t in [*module.parameters(), *module.buffers()]})
