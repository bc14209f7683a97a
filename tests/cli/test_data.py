"""`omnimamba data`: what it prints where, and its exit codes."""

import json
from pathlib import Path

import pytest
from PIL import Image

from omnimamba_cli.engine.data_check import CheckSettings
from omnimamba_cli.engine.data_speed import measure_speed
from tests.cli.conftest import Run


@pytest.fixture
def talks(run: Run, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Twenty good conversations, in the folder that `run` works in."""
    monkeypatch.setenv("OMNIMAMBA_MODEL", str(tiny_model))
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    messages = [{"from": "human", "value": "<image>\nwhat is here?"}, {"from": "gpt", "value": "a [red] fox"}]
    path = tmp_path / "talks.jsonl"
    path.write_text("".join(json.dumps({"image": "a.png", "conversations": messages}) + "\n" for _ in range(20)))
    return path


def test_good_data_exit_with_0_and_show_their_tokens(run: Run, talks: Path) -> None:
    done = run("data", "check", "talks.jsonl")
    assert done.code == 0
    first, name, *rows = done.out.splitlines()
    assert first.startswith("talks.jsonl: pictures and words, 20 of 20 can be used, 20 with a picture (20 decoded)")
    assert name == "  talks.jsonl:1, 64x48, as tokens:"
    assert rows[2].split() == ["2-17", "picture:", "16", "patches"]
    assert rows[-1].endswith('answer, trained on " a [red] fox<|endoftext|>"')
    assert run("data", "check", "talks.jsonl", "-q").err == ""
    assert "20 with a picture (0 decoded)" in run("data", "check", "talks.jsonl", "--decode", "0").out


def test_few_bad_samples_are_6_and_many_are_3(run: Run, talks: Path) -> None:
    with talks.open("a") as file:
        file.write("{\n")
    few = run("data", "check", "talks.jsonl", "--examples", "0")
    assert few.code == 6
    assert "  1 malformed, skipped in training\n    talks.jsonl:21: no valid JSON" in few.out
    many = run("data", "check", "talks.jsonl", "--max-bad-share", "0.01", "--list", "0")
    assert many.code == 3
    assert "error: 1 of 21 samples of talks.jsonl are bad, more than 1%" in many.err
    assert "hint: " in many.err


def test_a_bad_sample_is_one_line_whatever_its_name_holds(run: Run, talks: Path) -> None:
    row = json.loads(talks.read_text().splitlines()[0])
    with talks.open("a") as file:
        file.write(json.dumps({**row, "image": "a\nb\x1b[31m.png"}) + "\n")
    assert "    talks.jsonl:21: a\\nb\\x1b[31m.png: no such file\n" in run("data", "check", "talks.jsonl").out


def test_a_file_that_is_not_there_does_not_hide_the_others(run: Run, talks: Path) -> None:
    both = run("data", "check", "none.json", "talks.jsonl")
    assert (both.code, "20 of 20" in both.out) == (6, True)
    assert "error: none.json: no such file" in both.err
    assert run("data", "check", "none.json").code == 3


def test_json_has_a_line_for_each_file_and_example(run: Run, talks: Path) -> None:
    done = run("data", "check", "talks.jsonl", "--json", "--examples", "2", "--task", "t2i", "--all")
    file, *examples = [json.loads(line) for line in done.out.splitlines()]
    assert (file["schema"], file["type"], file["samples"], file["usable"]) == (1, "file", 20, 0)
    assert file["problems"]["malformed"]["count"] == 20
    assert file["problems"]["malformed"]["skipped"] is True
    assert "drawing needs captions" in file["problems"]["malformed"]["first"][0]["reason"]
    assert (examples, done.code) == ([], 3)
    done = run("data", "check", "talks.jsonl", "--json", "--examples", "2")
    _, *examples = [json.loads(line) for line in done.out.splitlines()]
    assert [example["name"] for example in examples] == ["talks.jsonl:1", "talks.jsonl:2"]
    assert examples[0]["spans"][0] == {"start": 0, "end": 1, "what": "[mmu]", "trained": False, "text": None}


def test_wrong_use_is_2(run: Run, talks: Path) -> None:
    assert run("data").code == 2
    assert "check" in run("data").out
    wrong = run("data", "check", "talks.jsonl", "--speed", "fast")
    assert (wrong.code, wrong.out) == (2, "")
    assert "--speed 1,2" in wrong.err
    assert run("data", "index", "a.tar", "-o", "list.json").code == 2


def test_speed_counts_the_samples_it_read(talks: Path, tiny_model: Path) -> None:
    from omnimamba_cli.data.tokenizer import TextTokenizer
    from omnimamba_cli.engine.checkpoint import read_config

    config = read_config(tiny_model)
    settings = CheckSettings(
        config=config, tokenizer=TextTokenizer.from_file(tiny_model / "tokenizer.json", config.text)
    )
    found = measure_speed([talks], settings, 0, seconds=0.05, batch=4)
    assert found.samples % 4 == 0
    assert found.samples > 0
    assert found.samples_per_s == pytest.approx(found.samples / found.seconds, rel=0.2)
    assert found.side_px == 64


def test_index_makes_a_list_that_check_takes(run: Run, talks: Path, tmp_path: Path) -> None:
    pytest.importorskip("webdataset", reason="webdataset is not installed")
    import tarfile

    for number in range(2):
        (tmp_path / "s.txt").write_text("a fox\n")
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            for name in ("a.png", "s.txt"):
                tar.add(tmp_path / name, f"sample{Path(name).suffix}")
    done = run("data", "index", "{0..1}.tar", "-o", "all.shards.jsonl")
    assert (done.code, done.out) == (0, "all.shards.jsonl\n")
    assert [json.loads(line) for line in (tmp_path / "all.shards.jsonl").read_text().splitlines()] == [
        {"shard": "0.tar", "samples": 1},
        {"shard": "1.tar", "samples": 1},
    ]
    assert run("data", "index", "0.tar", "-o", "all.shards.jsonl").code == 3
    checked = run("data", "check", "all.shards.jsonl", "--json", "--examples", "0")
    assert json.loads(checked.out)["usable"] == 2
    assert checked.code == 0
    assert run("data", "index", "0.tar", "-o", "all.shards.jsonl", "--force").code == 0
    assert len((tmp_path / "all.shards.jsonl").read_text().splitlines()) == 1
