"""--resume on data that are no longer those of the run: refused, by the name of the file."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest

from omnimamba_cli.engine.training import Evaluated, Note, StageSettings, train
from omnimamba_cli.engine.vq_training import VQSettings, train_image_tokenizer
from omnimamba_cli.errors import ExitCode, InputError
from omnimamba_cli.train import snapshots
from tests.cli.conftest import Run, run  # noqa: F401  # a fixture
from tests.train.conftest import Data, loop, stage


@pytest.fixture
def own(data: Data, tmp_path: Path) -> Data:
    """A copy of the data that a test may change."""
    folder = tmp_path / "data"
    shutil.copytree(data.folder, folder)
    return Data(folder, *(folder / path.name for path in (data.talks, data.captions, data.codes)))


@pytest.fixture
def first(own: Data, tiny_model: Path, tmp_path: Path) -> StageSettings:
    """The settings of a run of two steps that is done, to be resumed for two more."""
    settings = stage("both", own, tiny_model, tmp_path / "out", loop=loop(steps=2))
    list(train(settings))
    return dataclasses.replace(settings, resume=True, loop=loop(steps=4))


def states(folder: Path) -> list[Path]:
    return sorted(folder.glob("snapshots/*/state.json"))


def test_a_snapshot_says_what_the_data_were(first: StageSettings, own: Data) -> None:
    recorded = json.loads(states(first.output)[-1].read_text())["data"]
    files = [(str(path), path.stat().st_size, 8) for path in (own.talks, own.codes)]
    assert [(row["path"], row["bytes"], row["samples"]) for row in recorded] == files


def test_a_changed_file_is_refused_by_name(first: StageSettings, own: Data) -> None:
    line = own.codes.read_text().splitlines()[0]
    with own.codes.open("a") as file:
        file.write(f"{line}\n")
    before = states(first.output)
    with pytest.raises(
        InputError, match=r"codes\.jsonl has changed since .*: 8 samples in .* then, 9 samples"
    ) as error:
        list(train(first))
    another = "start another run on these data: another -o"
    assert error.value.hint == f"{another}, with --init {first.output} to go on from what this one learnt"
    assert states(first.output) == before
    (first.output / "model.safetensors").unlink()
    for part in ("vision", "vq"):
        (first.output / f"{part}.safetensors").unlink()
    with pytest.raises(InputError) as error:
        list(train(first))
    assert error.value.hint == another


def test_another_file_among_the_data_is_refused(first: StageSettings, own: Data) -> None:
    more = own.folder / "more.jsonl"
    shutil.copy(own.captions, more)
    with pytest.raises(InputError, match=r"more\.jsonl \(8 samples in .* bytes\) is in the place of .*codes\.jsonl"):
        list(train(dataclasses.replace(first, data_mmu=(own.talks, more))))


def test_moved_and_touched_files_are_the_same(first: StageSettings, own: Data) -> None:
    moved = own.folder.with_name("moved")
    own.folder.rename(moved)
    os.utime(moved / own.codes.name, (0, 0))
    again = dataclasses.replace(
        first, data_mmu=(moved / own.talks.name,), data_t2i=(moved / own.codes.name,), image_root=moved
    )
    assert list(train(again))[-1].step == 4  # type: ignore[attr-defined]  # Finished is the last


def test_changed_held_out_data_are_told_and_the_best_starts_anew(
    own: Data, data: Data, tiny_model: Path, tmp_path: Path
) -> None:
    held = own.folder / "held.jsonl"
    shutil.copy(own.codes, held)
    settings = stage("both", data, tiny_model, tmp_path / "out", loop=loop(steps=2, eval_every=2), eval_t2i=(held,))
    list(train(settings))
    (path,) = states(settings.output)
    state = json.loads(path.read_text())
    state["best"] = {"step": 2, "eval_loss": 0.0}  # nothing is better
    path.write_text(json.dumps(state))
    (path.parent / snapshots.SUMS).write_text(snapshots.checksums(path.parent))
    same = dataclasses.replace(settings, resume=True, loop=loop(steps=4, eval_every=2))
    shutil.copytree(settings.output, tmp_path / "again")
    events = list(train(dataclasses.replace(same, output=tmp_path / "again")))
    assert not any("held out" in event.text for event in events if isinstance(event, Note))
    assert not any(event.best for event in events if isinstance(event, Evaluated))
    held.write_text("".join(held.read_text().splitlines(keepends=True)[:-1]))
    events = list(train(same))
    (said,) = [event.text for event in events if isinstance(event, Note) and event.text.startswith("held out:")]
    assert "held.jsonl has changed since the run was started: 8 samples" in said
    assert [event.best for event in events if isinstance(event, Evaluated)] == [True]
    assert json.loads(states(settings.output)[-1].read_text())["best"]["eval_loss"] > 0


def test_the_image_tokenizer_notices_that_pictures_came(own: Data, tiny_model: Path, tmp_path: Path) -> None:
    from omnimamba_cli.engine.starting import vq_config
    from omnimamba_cli.presets import preset

    sizes = vq_config(tiny_model / "vq.safetensors", preset("nano").vq)
    settings = VQSettings(
        data=own.folder, output=tmp_path / "vq", config=sizes, loop=loop(steps=1), batch=2, device="cpu", sheet_every=0
    )
    list(train_image_tokenizer(settings))
    shutil.copy(own.folder / "0.png", own.folder / "more.png")
    with pytest.raises(InputError, match=r"data has changed since .*: 8 samples then, 9 samples now"):
        list(train_image_tokenizer(dataclasses.replace(settings, resume=True, loop=loop(steps=2))))


def test_it_is_one_error_on_the_command_line(
    run: Run,  # noqa: F811
    own: Data,
    tiny_model: Path,
) -> None:
    line = ["train-stage1", "--task", "t2i", "--init", str(tiny_model), "--data", str(own.codes), "--batch", "2"]
    line += ["--device", "cpu", "--workers", "0", "--steps", "1", "-o", "one"]
    assert run(*line).code == 0
    own.codes.write_text("".join(own.codes.read_text().splitlines(keepends=True)[:-1]))
    result = run(*line, "--resume")
    assert (result.code, result.out) == (ExitCode.INPUT, "")
    assert result.err.count("\nhint: ") == 1
    assert "codes.jsonl has changed since the run was started: 8 samples" in result.err
