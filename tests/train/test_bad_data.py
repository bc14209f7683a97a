"""Data that are not as they should be: refused before the first step, or survived, counted and named."""

import dataclasses
import errno
import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from omnimamba_cli.data.rejects import Rejects
from omnimamba_cli.engine import checkpoint
from omnimamba_cli.engine.training import Note, Progress, Skipped, StageSettings, train
from omnimamba_cli.errors import DataError, InputError, UsageError
from tests.train.conftest import Data, loop, stage


def talks_with(data: Data, folder: Path, wrong: dict[int, str], *, times: int = 4) -> Path:
    """The small conversations several times over, some with another picture."""
    rows = json.loads(data.talks.read_text()) * times
    for row in rows:
        row["image"] = str(data.folder / row["image"])
    rows = [{**row, "image": wrong.get(i, row["image"])} for i, row in enumerate(rows)]
    path = folder / "talks.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture
def cut(tmp_path: Path) -> str:
    """A picture whose head is whole: that it is cut off shows only when it is decoded."""
    path = tmp_path / "cut.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:1000])
    return str(path)


def run(settings: StageSettings) -> tuple[list[Progress], list[Skipped]]:
    events = list(train(settings))
    return [e for e in events if isinstance(e, Progress)], [e for e in events if isinstance(e, Skipped)]


def test_missing_pictures_are_refused_before_the_first_step(data: Data, tiny_model: Path, tmp_path: Path) -> None:
    path = talks_with(data, tmp_path, dict.fromkeys(range(20), "gone.png"))
    settings = stage("mmu", data, tiny_model, tmp_path / "out", data_mmu=(path,))
    with pytest.raises(DataError, match=r"20 of 32 mmu samples .*gone.png: no such file") as error:
        list(train(settings))
    assert "--image-root" in (error.value.hint or "")
    assert "data check" in (error.value.hint or "")
    assert not settings.output.exists()


def test_a_bad_sample_is_replaced_named_once_and_counted(
    data: Data, tiny_model: Path, tmp_path: Path, cut: str
) -> None:
    path = talks_with(data, tmp_path, {3: cut})
    settings = stage("mmu", data, tiny_model, tmp_path / "out", data_mmu=(path,), loop=loop(steps=16))
    reports, skipped = run(settings)  # two epochs
    assert [s.name for s in skipped] == ["talks.json[4]"]
    assert "cut.png" in skipped[0].reason
    assert reports[-1].values["skipped"] == 2
    assert all(math.isfinite(r.values["loss"]) for r in reports)


def test_a_run_over_bad_samples_resumes_to_the_bit_whatever_the_workers(
    data: Data, tiny_model: Path, tmp_path: Path, cut: str
) -> None:
    path = talks_with(data, tmp_path, {3: cut})
    config = loop(steps=12, save_every=4, keep=9)
    whole = stage("mmu", data, tiny_model, tmp_path / "whole", data_mmu=(path,), loop=config)
    reports, _ = run(whole)
    halves = dataclasses.replace(whole, output=tmp_path / "halves", workers=2)
    for event in train(halves):
        if isinstance(event, Progress) and event.step == 10:
            break
    again, _ = run(dataclasses.replace(halves, workers=1, resume=True))
    timeless = [{k: v for k, v in r.values.items() if k != "tokens_per_s"} for r in reports]
    assert [{k: v for k, v in r.values.items() if k != "tokens_per_s"} for r in again] == timeless[8:]
    one, two = (load_file(s.output / "model.safetensors") for s in (whole, halves))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("kind", ["mmu", "t2i"])
def test_too_many_bad_samples_end_the_run_and_the_share_is_an_option(
    kind: str, data: Data, tiny_model: Path, tmp_path: Path, cut: str
) -> None:
    captions = tmp_path / "captions.jsonl"
    captions.write_text((json.dumps({"image": cut, "captions": ["a house"]}) + "\n") * 32)
    settings = stage(kind, data, tiny_model, tmp_path / "out", loop=loop(steps=3))
    settings = dataclasses.replace(settings, data_mmu=(captions,), data_t2i=(captions,))
    with pytest.raises(DataError, match=r"samples are bad, more than 5%; first: captions.jsonl:\d+: .*cut.png"):
        list(train(settings))
    # nothing can be read and the user puts up with that: nothing is learnt, and nothing is NaN
    blind = dataclasses.replace(settings, output=tmp_path / "blind", max_bad_share=1.0)
    reports, _ = run(blind)
    assert [r.values["loss"] for r in reports] == [0.0] * 3
    before, after = (load_file(p / "model.safetensors") for p in (tiny_model, blind.output))
    assert all(torch.equal(before[name].float(), after[name]) for name in before)


def test_chance_in_a_part_of_the_data_does_not_end_a_run_and_the_whole_does() -> None:
    rejects = Rejects(0.05, {f"{i}": "bad" for i in range(11)})
    rejects.check(100, 1000)
    for seen, total in ((100, 100), (100, None), (60, 1000)):
        with pytest.raises(DataError, match=f"11 of {seen} samples"):
            rejects.check(seen, total)
    with pytest.raises(DataError, match="more than 0%"):
        Rejects(0.0, {"a": "bad"}).check(10, 1000)


def test_pictures_drawn_in_training_equal_their_codes(data: Data, tiny_model: Path, tmp_path: Path) -> None:
    from omnimamba_cli.engine.encoding import TokenizeSettings, Tokenizing

    codes = tmp_path / "codes.jsonl"
    list(Tokenizing(TokenizeSettings(data=(data.captions,), vq=tiny_model, output=codes, device="cpu")).run())
    losses = [
        [r.values["loss"] for r in run(stage("t2i", data, tiny_model, tmp_path / path.stem, data_t2i=(path,)))[0]]
        for path in (codes, data.captions)
    ]
    assert losses[0] == losses[1]


def test_codes_and_pictures_of_one_task_are_not_mixed(data: Data, tiny_model: Path, tmp_path: Path) -> None:
    settings = stage("t2i", data, tiny_model, tmp_path / "out", data_t2i=(data.codes, data.captions))
    with pytest.raises(UsageError, match=r"captions.jsonl holds pictures"):
        list(train(settings))


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"image": "0.png", "captions": ["a h', "no valid JSON"),
        ('{"image": "0.png", "captions": ["", " "]}', "captions are empty"),
        ('{"image": 3, "captions": ["a house"]}', "no file name"),
        ('{"image": "0.png", "conversations": [{"from": "gpt", "value": "a house"}]}', "no question"),
        ('{"image": "0.png", "conversations": 5}', "no list"),
        ('{"captions": ["a house"]}', "no picture"),
        ('{"tokens": [1, 2], "captions": ["a house"]}', "codes, which are for t2i"),
    ],
)
def test_malformed_lines_are_survived_when_few(
    line: str, what: str, data: Data, tiny_model: Path, tmp_path: Path
) -> None:
    rows = data.captions.read_text().splitlines() * 4
    path = tmp_path / "captions.jsonl"
    path.write_text("\n".join([*rows, line]) + "\n")
    config = loop(steps=1)
    settings = stage(
        "mmu", data, tiny_model, tmp_path / "out", data_mmu=(path,), image_root=data.folder, loop=config, batch_mmu=1
    )
    events = list(train(settings))
    assert [(e.name, what in e.reason) for e in events if isinstance(e, Skipped)] == [("captions.jsonl:33", True)]
    assert any("32 samples, 1 bad" in e.text for e in events if isinstance(e, Note))


def test_what_is_wrong_with_codes_is_said_before_the_first_step(data: Data, tiny_model: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in data.codes.read_text().splitlines()]
    for change, what in (
        ({"tokens": rows[0]["tokens"][:-1]}, "it has 63 codes, the model draws with 64"),
        ({"tokens": [*rows[0]["tokens"][:-1], 64]}, "code 63 is 64, outside 0 to 63"),
        ({"captions": [""]}, "its captions are empty"),
    ):
        path = tmp_path / "codes.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {**rows[0], **change}]))
        settings = stage("t2i", data, tiny_model, tmp_path / "out", data_t2i=(path,))
        with pytest.raises(DataError, match=rf"1 of 9 samples .* codes.jsonl:9: {what}"):
            list(train(settings))


def test_an_array_that_is_cut_off_is_refused_with_its_item(data: Data, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "talks.json"
    path.write_text(data.talks.read_text()[:-30])
    with pytest.raises(DataError, match=r"talks.json is no valid JSON array: item 8: Unterminated"):
        list(train(stage("mmu", data, tiny_model, tmp_path / "out", data_mmu=(path,))))


def test_an_output_that_cannot_be_written_is_refused(data: Data, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        list(train(stage("t2i", data, tiny_model, tmp_path / "file" / "out")))


def test_a_disk_that_is_full_when_the_result_is_written_loses_nothing(
    data: Data, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        target.write_bytes(b"a part")
        raise OSError(errno.ENOSPC, "No space left on device", str(source))

    settings = stage("mmu", data, tiny_model, tmp_path / "out", resume=True)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "link_or_copy", full)
        with pytest.raises(InputError, match=r"out cannot be written: no space left on device") as error:
            list(train(settings))
    assert error.value.hint == "free some space, then --resume"
    assert list(tmp_path.rglob("*.partial")) == []
    events = list(train(settings))
    assert [e.text for e in events if isinstance(e, Note) and "resumed" in e.text] == ["resumed at step 4"]
    assert (settings.output / "config.json").is_file()
