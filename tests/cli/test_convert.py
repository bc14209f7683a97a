import json
from pathlib import Path

import pytest

from omnimamba_cli.cli.convert import human_size
from omnimamba_cli.config import ModelConfig
from omnimamba_cli.engine import convert_files
from omnimamba_cli.presets import preset
from tests.cli.conftest import Run


@pytest.fixture
def _converts(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that reports one of everything."""

    def convert(sources: list[Path], dest: Path, **_: object) -> object:
        config: ModelConfig = preset("1.3b")
        yield convert_files.SourceRead(path=sources[0], kind="the published model", tensors=645, size_bytes=3_200_000)
        yield convert_files.Note(text="left out x")
        yield convert_files.PartWritten(file="model.safetensors", tensors=645, size_bytes=3_200_000)
        yield convert_files.Finished(
            directory=dest, config=config, size_bytes=9, seconds=1.5, lacks=("it cannot draw (vq is missing)",)
        )

    monkeypatch.setattr(convert_files, "convert", convert)


@pytest.mark.usefixtures("_converts")
def test_the_directory_is_the_result_and_the_rest_is_talk(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"")
    result = run("convert", "a.pth", "model")
    assert (result.code, result.out) == (0, "model\n")
    assert "read   a.pth: the published model, 645 tensors, 3.2 MB" in result.err
    assert "note   it cannot draw" in result.err
    assert run("convert", "a.pth", "model", "-q").err == ""


@pytest.mark.usefixtures("_converts")
def test_json_tells_the_model_and_its_size(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"")
    record = json.loads(run("convert", "a.pth", "model", "--json").out)
    assert record == {
        "schema": 1,
        "directory": "model",
        "model": "omnimamba-1.3b",
        "bytes": 9,
        "seconds": 1.5,
        "lacks": ["it cannot draw (vq is missing)"],
    }


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "needs files to read"),
        (["a.pth"], 2, "needs files to read"),
        (["missing.pth", "model"], 3, "missing.pth: no such file"),
        (["a.pth", "model"], 4, "a.pth is no checkpoint"),
        (["a.pth", "model", "--dtype", "fp8"], 2, "fp8"),
        (["a.pth", "model", "--preset", "nono"], 2, "nono"),
    ],
)
def test_what_cannot_be_converted_is_refused(
    run: Run, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    (tmp_path / "a.pth").write_text("no checkpoint")
    result = run("convert", *arguments)
    assert (result.out, result.err.splitlines()[0][:7]) == ("", "error: ")
    assert words in result.err
    assert result.code == code
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("size", "words"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (3_200_000, "3.2 MB"), (3.2e9, "3.2 GB")]
)
def test_sizes_are_read_by_people(size: float, words: str) -> None:
    assert human_size(size) == words
