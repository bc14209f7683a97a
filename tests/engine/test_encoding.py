"""Pictures to codes by several processes, killed ones too: the same file that one process writes."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from omnimamba_cli.engine import encoding
from omnimamba_cli.engine.encoding import TokenizeSettings, Tokenizing
from omnimamba_cli.errors import DataError, InputError, UsageError
from omnimamba_cli.train.events import Note, Saved, Skipped
from tests.cli.conftest import environment

COUNT = 11


@pytest.fixture
def settings(tiny_model: Path, tmp_path: Path) -> TokenizeSettings:
    """Eleven pictures in a CSV, one of which is none."""
    for i in range(COUNT):
        Image.effect_noise((40, 30), 20 + 10 * i).save(tmp_path / f"{i}.png")
    (tmp_path / "4.png").write_text("no picture")
    lines = [f"{i}.png,number {i}" for i in range(COUNT)]
    (tmp_path / "captions.csv").write_text("\n".join(["image,caption", *lines]) + "\n")
    return TokenizeSettings(
        data=(tmp_path / "captions.csv",),
        vq=tiny_model,
        output=tmp_path / "codes.jsonl",
        batch=2,
        device="cpu",
        max_bad_share=0.5,
    )


def run(settings: TokenizeSettings) -> list[Any]:
    return list(Tokenizing(settings).run())


def test_a_bad_picture_is_named_and_left_out(settings: TokenizeSettings) -> None:
    events = run(settings)
    rows = [json.loads(line) for line in settings.output.read_text().splitlines()]
    assert [row["captions"] for row in rows] == [[f"number {i}"] for i in range(COUNT) if i != 4]
    assert {len(row["tokens"]) for row in rows} == {64}
    assert [(e.name, "not a picture" in e.reason) for e in events if isinstance(e, Skipped)] == [
        ("captions.csv:6", True)
    ]
    strict = dataclasses.replace(settings, output=settings.output.with_name("strict.jsonl"), max_bad_share=0.05)
    with pytest.raises(DataError, match=r"more than 5%; first: captions.csv:6"):
        run(strict)


def test_parts_of_several_processes_join_to_the_same_file(settings: TokenizeSettings, tmp_path: Path) -> None:
    run(settings)
    shared = dataclasses.replace(settings, output=tmp_path / "shared.jsonl")
    for number in (2, 3, 1):
        assert not shared.output.exists()
        events = run(dataclasses.replace(shared, shard=(number, 3)))
        if number == 3:  # asked again for what is done already: nothing is lost, nothing is done twice
            again = run(dataclasses.replace(shared, shard=(2, 3)))
            assert any(isinstance(e, Note) and "continuing after 4 of 4" in e.text for e in again)
    assert [e.path for e in events if isinstance(e, Saved)] == [shared.output]
    assert shared.output.read_bytes() == settings.output.read_bytes()
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


def test_killed_at_once_and_run_again(settings: TokenizeSettings, tmp_path: Path) -> None:
    run(settings)
    other = tmp_path / "killed.jsonl"
    command = [sys.executable, "-m", "omnimamba_cli", "tokenize", "--data", str(settings.data[0]), "--vq"]
    command += [str(settings.vq), "-o", str(other), "--batch-size", "1", "--workers", "0", "--device", "cpu"]
    command += ["--max-bad-share", "0.5"]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL)
    lines = other.with_name("killed.jsonl.partial")
    deadline = time.monotonic() + 100
    while not (lines.is_file() and lines.stat().st_size > 200) and time.monotonic() < deadline:
        assert process.poll() is None or other.exists()
        if other.exists():
            break
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    run(dataclasses.replace(settings, output=other, batch=1, force=True))
    assert other.read_bytes() == settings.output.read_bytes()


def test_other_data_begin_anew(settings: TokenizeSettings, tmp_path: Path) -> None:
    for _ in zip(range(6), Tokenizing(settings).run(), strict=False):
        pass  # stops in the middle
    assert (tmp_path / "codes.jsonl.partial").stat().st_size
    text = settings.data[0].read_text().replace("number 0", "the first one")
    settings.data[0].write_text(text)
    events = run(settings)
    assert not [e for e in events if isinstance(e, Note)]
    assert "the first one" in settings.output.read_text()


def test_a_full_disk_says_what_to_do_and_loses_nothing(settings: TokenizeSettings, monkeypatch: Any) -> None:
    real = Path.open
    left = [2]

    def full(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name.endswith(".partial") and arguments[:1] == ("a",):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(InputError, match=r"codes.jsonl.partial cannot be written: no space left") as error:
        run(settings)
    assert "the same command continues" in (error.value.hint or "")
    monkeypatch.setattr(Path, "open", real)
    assert any(
        isinstance(e, Note) and "continuing after 5 of 11" in e.text for e in run(settings)
    )  # 4 lines, 1 skipped


def test_a_folder_that_is_not_there_is_refused(settings: TokenizeSettings, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        run(dataclasses.replace(settings, output=tmp_path / "none" / "codes.jsonl"))


def test_shares_out_of_range_and_codes_are_refused(settings: TokenizeSettings) -> None:
    with pytest.raises(UsageError, match="shard 5/4"):
        dataclasses.replace(settings, shard=(5, 4))
    run(settings)
    with pytest.raises(DataError, match="holds codes already"):
        run(dataclasses.replace(settings, data=(settings.output,), output=settings.output.with_name("b.jsonl")))


def test_two_that_finish_at_once_leave_one_file(settings: TokenizeSettings, monkeypatch: Any) -> None:
    halves = [dataclasses.replace(settings, shard=(number, 2)) for number in (1, 2)]
    run(halves[0])
    joined = encoding.join
    results = []
    monkeypatch.setattr(encoding, "join", lambda s: results.append((joined(s), joined(s))) or True)
    run(halves[1])
    assert results == [(True, True)]  # the second found the work done
