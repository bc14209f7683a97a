"""The example data are what their README says, and its commands run."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from omnimamba_cli.cli.app import main
from omnimamba_cli.data.records import captions_of, read_records
from omnimamba_cli.data.rejects import Rejects
from tests.examples.test_examples import with_a_command

FOLDER = Path(__file__).parents[2] / "examples" / "data"
README = (FOLDER / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_files_are_good_data_for_the_bundled_model(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(FOLDER)
    first = commands()[0].split()
    assert main([*first[1:], "--json", "-m", str(FOLDER.parents[1] / "weights" / "nano")]) == 0
    found = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    files = {record["path"]: record for record in found if record["type"] == "file"}
    assert {name: record["usable"] for name, record in files.items()} == {
        "talks.json": 4,
        "captions.jsonl": 3,
        "captions.csv": 3,
        "photos": 3,
        "codes.jsonl": 3,
    }
    assert all(record["problems"] == {} for record in files.values())


def test_every_format_says_the_same() -> None:
    said = [
        [captions_of(record) for _, record in read_records(FOLDER / name, Rejects())]
        for name in ("captions.jsonl", "captions.csv", "photos", "codes.jsonl")
    ]
    assert all(captions == said[0] for captions in said)


def test_the_objects_that_the_readme_shows_are_in_the_files() -> None:
    talks = json.loads((FOLDER / "talks.json").read_text())
    (shown,) = re.findall(r"^```json\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert json.loads(shown) in talks
    (line,) = re.findall(r'JSON lines `(\{"image".*?\})`', README)
    assert json.loads(line) in [json.loads(text) for text in (FOLDER / "captions.jsonl").read_text().splitlines()]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_readmes_other_commands_run(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("webdataset", reason="webdataset is not installed")
    work = shutil.copytree(FOLDER, tmp_path / "data")
    (work / "codes.jsonl").unlink()
    script = "set -e\n" + "\n".join(commands()[1:]).replace("MODEL", str(tiny_model))
    environment = with_a_command(tiny_model, tmp_path / "bin")
    environment["PYTHONPATH"] += os.pathsep + os.environ.get("PYTHONPATH", "")
    done = subprocess.run(
        ["bash", "-c", script], cwd=work, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len((work / "codes.jsonl").read_text().splitlines()) == 3
    assert "shapes-000.tar: shards, 3 of 3 can be used" in done.stdout
    row = json.loads((work / "shapes.shards.jsonl").read_text())
    assert row == {"shard": "shapes-000.tar", "samples": 3}
