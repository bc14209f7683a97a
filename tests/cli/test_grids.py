"""`generate --grid` and `--show`."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import FakeSession, Run


def test_a_grid_is_one_file_with_every_picture(run: Run, fake: FakeSession, tmp_path: Path) -> None:
    result = run("generate", "a red fox", "-n", "9", "--grid", "--seed", "40", "-o", "foxes.png")
    assert (result.code, result.out) == (0, "foxes.png\n")
    assert [path.name for path in tmp_path.iterdir()] == ["foxes.png"]
    assert (len(fake.drawn[0][0]), fake.drawn[0][1]) == (9, list(range(40, 49)))
    with Image.open(tmp_path / "foxes.png") as sheet:
        assert (sheet.text["prompt"], sheet.text["seed"]) == ("a red fox", "40")
        colours = {colour for _, colour in sheet.convert("RGB").getcolors(1 << 16)}
    # the fake draws in the colour of the seed
    assert {(40 + i, 0, 0) for i in range(9)} <= colours


def test_a_grid_of_several_prompts_says_which(run: Run, fake: FakeSession, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a fox\na cat\n")
    result = run("generate", "--from", "prompts.txt", "-n", "2", "--grid", "--seed", "1", "--json")
    record = json.loads(result.out)
    assert (record["path"], record["prompt"], record["seed"]) == ("a-fox.png", "a fox\na cat", 1)
    assert fake.drawn[0][0] == ["a fox", "a fox", "a cat", "a cat"]


def test_a_grid_that_exists_is_kept(run: Run, fake: FakeSession, tmp_path: Path) -> None:
    (tmp_path / "g.png").write_bytes(b"old")
    assert run("generate", "a", "-n", "2", "--grid", "-o", "g.png").code == 3
    skipped = run("generate", "a", "-n", "2", "--grid", "-o", "g.png", "--skip-existing")
    assert (skipped.code, skipped.out, fake.opened) == (0, "", [])
    assert (tmp_path / "g.png").read_bytes() == b"old"


def test_a_grid_goes_to_stdout_whatever_its_number(
    fake: FakeSession, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    from omnimamba_cli.cli.app import main

    assert main(["generate", "a", "-n", "4", "--grid", "-o", "-", "-q"]) == 0
    data, err = capfdbinary.readouterr()
    assert (data[:4], err) == (b"\x89PNG", b"")


def test_show_without_a_terminal_says_so_and_draws_all_the_same(run: Run, fake: FakeSession) -> None:
    result = run("generate", "a", "--show", "-o", "a.png", "--seed", "1")
    assert (result.code, result.out) == (0, "a.png\n")
    assert result.err == "--show: stderr is no terminal, so nothing is shown\n"
