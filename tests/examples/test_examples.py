"""The examples run as they stand, on a small random model; and what README shows is there."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from omnimamba_cli.cli.app import COMMANDS
from omnimamba_cli.errors import ExitCode

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small steps: threads that wait for each other take longer, above all where other tests run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_python_api_example_runs(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMNIMAMBA_MODEL", str(tiny_model))
    runpy.run_path(str(ROOT / "examples" / "python_api.py"))["main"](tmp_path / "out")
    assert capsys.readouterr().out.count("tokens") == 3
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"fox.png", "fox.state", "a-cat-1.png", "two-blue-cars-2.png", "house.png"}


def with_a_command(tiny_model: Path, folder: Path) -> dict[str, str]:
    """An environment with this checkout, the small model, and `omnimamba` on the path."""
    folder.mkdir()
    command = folder / "omnimamba"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m omnimamba_cli "$@"\n')
    command.chmod(0o755)
    changes = {
        "OMNIMAMBA_MODEL": str(tiny_model),
        "OMNIMAMBA_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    return {**os.environ, **changes}


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_pipelines_run(tiny_model: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", str(ROOT / "examples" / "pipelines.sh"), "out"],
        cwd=tmp_path,
        env=with_a_command(tiny_model, tmp_path / "bin"),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (done.returncode, done.stdout) == (0, "exit code 6, 3 answers\n"), done.stderr
    assert "Traceback" not in done.stderr
    out = tmp_path / "out"
    assert (out / "drawn.txt").read_text().split() == ["a-red-fox-7.png", "two-cats-8.png", "a-blue-car-9.png"]
    assert Image.open(out / "two-cats-8.png").size == (32, 32)
    names = [line.split("\t")[0] for line in (out / "captions.tsv").read_text().splitlines()]
    assert names == ["./a-blue-car-9.png", "./a-red-fox-7.png", "./two-cats-8.png"]
    # the same picture, from a file and from a pipe
    caption = (out / "captions.tsv").read_text().splitlines()[1].split("\t")[1]
    assert (out / "said.txt").read_text().split() == caption.split()
    records = [json.loads(line) for line in (out / "grounds.jsonl").read_text().splitlines()]
    assert [record["image"] for record in records] == names
    assert "error: ./my notes.txt: not a picture" in (out / "errors.txt").read_text()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_fine_tuning_recipe_runs(tiny_model: Path, tmp_path: Path) -> None:
    example = ROOT / "examples" / "finetune"
    runpy.run_path(str(example / "demo_pictures.py"))["main"](tmp_path / "pictures")
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {"captions.jsonl", *(f"{i}.jpg" for i in range(10))}
    for path in (tmp_path / "pictures").glob("*.jpg"):  # as cameras and phones name them
        path.rename(path.with_suffix(".JPEG"))
    listed = tmp_path / "pictures" / "captions.jsonl"
    listed.write_text(listed.read_text().replace(".jpg", ".JPEG"))
    few = "--steps 2 --workers 0 --save-minutes 0"
    environment = {**with_a_command(tiny_model, tmp_path / "bin"), "MODEL": str(tiny_model)}
    done = subprocess.run(
        ["bash", str(example / "finetune.sh"), "pictures", "out"],
        cwd=tmp_path,
        env={**environment, "TOKENIZER_OPTIONS": few, "STAGE2_OPTIONS": few},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    out = tmp_path / "out"
    assert len((out / "codes.jsonl").read_text().splitlines()) == 10
    settings = json.loads((out / "model" / "train.json").read_text())["settings"]
    assert (settings["batch_mmu"], settings["loop"]["lr"], settings["loop"]["steps"]) == (5, 1e-3, 2)
    assert done.stdout.splitlines()[-2].startswith("pictures/0.JPEG: ")
    assert Image.open(out / "drawn.png").size == (32, 32)


def blocks(language: str) -> list[str]:
    """README's code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_readme_shows_how_to_run_it_at_once() -> None:
    start = "\n".join(README.read_text(encoding="utf-8").splitlines()[:24])
    assert "pip install" in start
    assert 'omnimamba generate "a red fox" -o fox.png' in start
    assert 'omnimamba caption fox.png "what is here?"' in start


def test_readme_names_every_command_and_exit_code() -> None:
    text = README.read_text(encoding="utf-8")
    for name in COMMANDS:
        assert f"`{name}" in text, name
    for code in ExitCode:
        assert f"| {code.value} |" in text, code


def test_readme_links_to_files_that_are_there() -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", README.read_text(encoding="utf-8"))
    assert links
    missing = [link for link in links if not (ROOT / link).exists()]
    assert missing in ([], ["weights/nano/samples.png"]), "all but the samples, which come with the trained model"


def test_readmes_python_is_ten_lines_that_run(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = blocks("python")
    assert len(code.splitlines()) <= 10
    small = code.replace('om.load("nano")', f"om.load({str(tiny_model)!r})")
    assert small != code
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (16, 16), "red").save("fox.png")
    exec(compile(small, "README.md", "exec"), {})
    assert (tmp_path / "fox-7.png").is_file()
