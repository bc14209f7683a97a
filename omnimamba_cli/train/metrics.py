"""metrics.jsonl: one line for each report and evaluation; a resumed run neither repeats nor skips a step."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omnimamba_cli.errors import InputError, file_reason


def read(path: Path) -> list[dict[str, Any]]:  # Any: JSON
    """The lines of a metrics file; a last one that was cut off is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


class MetricsFile:
    """Appends reports. Opening it at a step drops lines of later steps, which a killed run wrote after its snapshot.

    Raises InputError where the file cannot be written.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        kept = [line for line in read(path) if line["step"] <= step] if step else []
        temporary = path.with_name(path.name + ".partial")
        with self._named():
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
            temporary.replace(path)

    def write(self, step: int, values: Mapping[str, float], seconds: float) -> None:
        """One line, on disk before this returns to the loop."""
        line = {"step": step, **values, "seconds": round(seconds, 3)}
        with self._named(), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            message = f"{self.path} cannot be written: {file_reason(error)}"
            raise InputError(message, hint="free some space, then --resume") from None
