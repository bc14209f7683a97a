"""Snapshots: whole or not there, the last few kept, a broken one passed over."""

from pathlib import Path

import pytest
import torch

from omnimamba_cli.errors import InputError
from omnimamba_cli.train import metrics, snapshots


def save(folder: Path, step: int) -> Path:
    return snapshots.save(folder, step, {"x": torch.full((4,), float(step))}, {"seconds": 1.5}, keep=3)


def test_snapshot_comes_back(tmp_path: Path) -> None:
    save(tmp_path, 7)
    found, broken = snapshots.latest(tmp_path)
    assert found is not None
    assert (found.step, found.state["seconds"], found.tensors["x"].tolist(), broken) == (7, 1.5, [7.0] * 4, [])


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in range(1, 6):
        save(tmp_path, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"step-{s:08d}" for s in (3, 4, 5)]


@pytest.mark.parametrize("file", [snapshots.TENSORS, snapshots.STATE])
def test_broken_newest_falls_back_and_says_so(tmp_path: Path, file: str) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2) / file
    path.write_bytes(path.read_bytes()[:-3])
    found, broken = snapshots.latest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert "step-00000002" in broken[0]


@pytest.mark.parametrize("file", [snapshots.TENSORS, snapshots.STATE])
def test_one_changed_bit_is_found(tmp_path: Path, file: str) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2) / file
    content = path.read_bytes()
    path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])  # both formats still read it
    found, broken = snapshots.latest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert snapshots.SUMS in broken[0]


def test_where_all_are_broken_none_is_said_to_be_used(tmp_path: Path) -> None:
    for step in (1, 2):
        (save(tmp_path, step) / snapshots.STATE).write_text("")
    found, broken = snapshots.latest(tmp_path)
    assert found is None
    assert [("is damaged" in line, "using" in line) for line in broken] == [(True, False)] * 2


def test_one_that_was_passed_over_does_not_push_out_the_one_just_saved(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        (save(tmp_path, step) / snapshots.STATE).write_text("")
    path = snapshots.save(tmp_path, 1, {}, {}, keep=1)
    assert snapshots.latest(tmp_path)[0] == snapshots.load(path)


def test_one_of_the_same_step_is_replaced_and_nothing_else_left(tmp_path: Path) -> None:
    (save(tmp_path, 1) / snapshots.STATE).write_text("")
    path = save(tmp_path, 1)
    assert snapshots.load(path).step == 1
    assert list(tmp_path.iterdir()) == [path]


def test_unwritable_folder_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError):
        save(tmp_path / "file", 1)


def test_metrics_after_the_snapshot_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = metrics.MetricsFile(path, 0)
    for step in (1, 2, 3):
        first.write(step, {"loss": step / 3}, 0.1)
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    metrics.MetricsFile(path, 2)
    assert [line["step"] for line in metrics.read(path)] == [1, 2]


def test_metrics_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = metrics.MetricsFile(path, 0)
    path.unlink()
    path.mkdir()
    for write in (lambda: file.write(1, {"loss": 1.0}, 0.1), lambda: metrics.MetricsFile(path, 0)):
        with pytest.raises(InputError, match=r"metrics\.jsonl cannot be written: is a directory") as error:
            write()
        assert error.value.hint == "free some space, then --resume"
