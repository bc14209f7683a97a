"""Reading JSON that others wrote: whatever is wrong with it is a ValueError. A leaf: imports nothing of the package."""

import json
from collections.abc import Callable
from typing import Any


def parse(text: str | bytes, *, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:  # Any: JSON
    """The value; `pairs` makes objects, as json's object_pairs_hook does. ValueError: no JSON, or too deep."""
    try:
        return json.loads(text, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
