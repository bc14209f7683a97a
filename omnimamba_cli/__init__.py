"""omnimamba: name what is in a picture and draw one from words, with one small Mamba-2 model.

    import omnimamba_cli as om
    session = om.load("nano")
    session.caption("fox.png", "what is here?")
    session.generate("a red fox", n=4, seed=7)

Importing this package imports no torch; `load` does.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omnimamba_cli.config import ModelConfig
    from omnimamba_cli.engine.session import Session, load

__version__ = "0.1.0"
__all__ = ["ModelConfig", "Session", "__version__", "load"]

_HOMES = {
    "ModelConfig": "omnimamba_cli.config",
    "Session": "omnimamba_cli.engine.session",
    "load": "omnimamba_cli.engine.session",
}


def __getattr__(name: str) -> Any:  # Any: the public names have different types
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
