import sys
from types import ModuleType, SimpleNamespace

import pytest

from omnimamba_cli.cli import models
from omnimamba_cli.cli.options import ModelOptions
from tests.cli.test_output import make, written


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that were loaded, by an engine that loads nothing."""
    names: list[str] = []
    engine = ModuleType("session")

    def load(name: str, **_: str) -> SimpleNamespace:
        names.append(name)
        return SimpleNamespace()

    engine.load = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "omnimamba_cli.engine.session", engine)
    return names


@pytest.mark.parametrize("model", [None, ""])
def test_without_a_model_nano_is_used_and_said(loaded: list[str], model: str | None) -> None:
    out = make()
    models.open_session(out, ModelOptions(model=model))
    assert loaded == ["nano"]
    assert written(out)[0] == ""
    assert written(out)[1].startswith("using nano")
    assert written(out)[1].count("\n") == 1


def test_a_named_model_is_used_without_words(loaded: list[str]) -> None:
    out = make()
    models.open_session(out, ModelOptions(model="nano"))
    assert (loaded, written(out)) == (["nano"], ("", ""))


def test_new_seeds_differ() -> None:
    assert len({models.new_seed() for _ in range(8)}) > 1
