import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from omnimamba_cli import engine
from tests.cli.conftest import FakeSession, Run


@dataclass
class Result:
    """What the engine's last event offers."""

    sheet: Image.Image | None

    def to_dict(self) -> dict[str, object]:
        return {"naming": {"seen": 0.9}}

    def table(self) -> tuple[list[str], list[list[str]]]:
        return ["split", "right"], [["seen", "90.0 %"]]


@pytest.fixture(autouse=True)
def _measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An engine that has measured at once, and a data folder."""
    module = ModuleType("evaluation")

    def evaluate(session: object, data: Path, *, limit: int | None, draw: int) -> Iterator[object]:
        assert data.is_dir()
        yield object()
        yield Result(Image.new("RGB", (4, 4)))

    module.evaluate_picturebook = evaluate  # type: ignore[attr-defined]
    module.EvaluationResult = Result  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "omnimamba_cli.engine.evaluation", module)
    monkeypatch.setattr(engine, "evaluation", module, raising=False)
    (tmp_path / "data").mkdir()


@pytest.mark.usefixtures("fake")
def test_results_are_a_table_or_json(run: Run) -> None:
    assert run("eval", "picturebook", "--data", "data").out == "split   right\nseen   90.0 %\n"
    record = json.loads(run("eval", "picturebook", "--data", "data", "--json").out)
    assert record == {"schema": 1, "naming": {"seen": 0.9}}


@pytest.mark.usefixtures("fake")
def test_results_and_sheet_are_written(run: Run, tmp_path: Path) -> None:
    assert run("eval", "picturebook", "--data", "data", "--sheet", "s.png", "--out", "r.json").code == 0
    assert json.loads((tmp_path / "r.json").read_text()) == {"naming": {"seen": 0.9}}
    assert Image.open(tmp_path / "s.png").size == (4, 4)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 2),
        (["picturebook"], 2),
        (["other", "--data", "data"], 2),
        (["picturebook", "--data", "missing"], 3),
        (["picturebook", "--data", "data", "--out", "old.json"], 3),
    ],
)
def test_wrong_use_is_refused_before_any_work(
    run: Run, fake: FakeSession, tmp_path: Path, arguments: list[str], code: int
) -> None:
    (tmp_path / "old.json").write_text("{}")
    result = run("eval", *arguments)
    assert (result.code, result.out) == (code, "")
    assert result.err.startswith("error: ")
    assert fake.opened == []
