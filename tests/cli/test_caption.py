import io
import json
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import FakeSession, Run


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    names = ["a.png", "b.png", "c.png"]
    for name in names:
        Image.new("RGB", (8, 8), "red").save(tmp_path / name)
    return names


def test_one_picture_prints_its_caption_alone(run: Run, fake: FakeSession, picture: str) -> None:
    result = run("caption", picture, "what is here?")
    assert (result.code, result.out.strip(), result.err) == (0, "a red fox", "")
    assert fake.asked[0][0] == "what is here?"


def test_no_stream_prints_the_same_words(run: Run, fake: FakeSession, picture: str) -> None:
    assert run("caption", picture, "--no-stream").out == "a red fox\n"
    assert fake.asked[0][0] is None


def test_several_pictures_print_a_line_each_with_the_name(run: Run, fake: FakeSession, pictures: list[str]) -> None:
    fake.answer = "a red\nfox"
    result = run("caption", *pictures, "what?")
    assert result.out == "".join(f"{name}\ta red fox\n" for name in pictures)
    assert [question for question, *_ in fake.asked] == ["what?"] * 3


@pytest.mark.parametrize(
    ("flag", "count", "expected"), [("-H", 1, "a.png\ta red fox"), ("--no-filename", 2, "a red fox")]
)
def test_names_can_be_asked_for_and_left_out(
    run: Run, fake: FakeSession, pictures: list[str], flag: str, count: int, expected: str
) -> None:
    lines = run("caption", *pictures[:count], flag).out.splitlines()
    assert [line.strip() for line in lines] == [expected] * count


def test_json_gives_one_object_a_line(run: Run, fake: FakeSession, pictures: list[str]) -> None:
    result = run("caption", *pictures, "--json")
    records = [json.loads(line) for line in result.out.splitlines()]
    assert [r["image"] for r in records] == pictures
    assert records[0] == {
        "schema": 1,
        "image": "a.png",
        "question": fake.config.default_question,
        "sha256": sha256(Path("a.png").read_bytes()).hexdigest(),
        "text": "a red fox",
        "caption": "a red fox",
        "finish_reason": "stop",
        "tokens": 3,
        "seconds": 0.5,
        "seed": None,
        "model": "fake",
    }


@pytest.mark.parametrize("batch_size", ["1", "2", "8"])
def test_a_bad_picture_is_reported_and_passed_over(
    run: Run, fake: FakeSession, pictures: list[str], batch_size: str
) -> None:
    options = ["--seed", "5", "--temperature", "1", "--batch-size", batch_size]
    result = run("caption", "a.png", "missing.png", "b.png", "c.png", *options)
    assert result.code == 6
    assert [line.split("\t")[0] for line in result.out.splitlines()] == ["a.png", "b.png", "c.png"]
    assert result.err == "error: missing.png: no such file\n1 of 4 pictures failed\n"
    assert [seed for *_, seed in fake.asked] == [5, 7, 8]  # by place in the run, whatever the batches


def test_fail_fast_stops_at_the_first_bad_picture(run: Run, fake: FakeSession, pictures: list[str]) -> None:
    result = run("caption", "a.png", "missing.png", "b.png", "--fail-fast", "-q")
    assert (result.code, result.out) == (6, "a.png\ta red fox\n")
    assert result.err == "error: missing.png: no such file\n"


def test_a_single_bad_picture_is_an_input_error_and_loads_no_model(run: Run, fake: FakeSession) -> None:
    result = run("caption", "missing.png")
    assert (result.code, result.out, result.err) == (3, "", "error: missing.png: no such file\n")
    assert fake.opened == []


def test_a_list_of_pictures_is_read_from_a_file(
    run: Run, fake: FakeSession, pictures: list[str], tmp_path: Path
) -> None:
    (tmp_path / "list").write_text("\n".join(pictures))
    assert run("caption", "--from", "list", "-p", "what?").out.count("\n") == 3
    (tmp_path / "list").write_text("\0".join(pictures))
    assert run("caption", "--from", "list", "-0").out.count("\n") == 3


def test_a_dash_reads_picture_bytes_from_stdin(
    run: Run, fake: FakeSession, picture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((tmp_path / picture).read_bytes())))
    assert run("caption", "-", "what?").out.strip() == "a red fox"


def test_stdin_without_a_dash_is_left_alone(
    run: Run, fake: FakeSession, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b"next.png\n"))
    monkeypatch.setattr(sys, "stdin", stdin)
    run("caption", picture)
    assert stdin.read() == "next.png\n"


def test_greedy_captions_need_no_seed_and_drawn_ones_report_it(run: Run, fake: FakeSession, picture: str) -> None:
    assert "seed" not in run("caption", picture).err
    result = run("caption", picture, "--temperature", "0.7", "--json")
    assert result.err == f"seed {json.loads(result.out)['seed']}\n"
    assert fake.asked[-1][1].temperature == 0.7


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--top-p", "2"], "top_p is 2"),
        (["--temperature", "nan"], "temperature is nan"),
        (["--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["--max-new-tokens", "many"], "--max-new-tokens"),
        (["--seed", "-1"], "--seed"),
        (["--dtype", "fp8"], "fp8"),
        (["--color", "red"], "red"),
    ],
)
def test_values_out_of_range_are_wrong_use_before_any_work(
    run: Run, fake: FakeSession, picture: str, options: list[str], words: str
) -> None:
    result = run("caption", picture, *options)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ")
    assert words in result.err
    assert fake.opened == []


def test_no_picture_is_wrong_use(run: Run) -> None:
    result = run("caption")
    assert result.code == 2
    assert "hint: omnimamba caption" in result.err


def test_options_come_from_the_environment(
    run: Run, fake: FakeSession, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"MODEL": "mine", "DEVICE": "cuda:1", "DTYPE": "bf16", "SEED": "9"}.items():
        monkeypatch.setenv(f"OMNIMAMBA_{name}", value)
    run("caption", picture)
    run("caption", picture, "-m", "other")
    assert fake.opened == [("mine", "cuda:1", "bf16"), ("other", "cuda:1", "bf16")]
    assert fake.asked[0][2] == 9


@pytest.mark.parametrize(
    ("given", "template"),
    [
        ([], None),
        (["--template", "released"], "USER: {question} ASSISTANT:"),
        (["--template", "training"], "In: {question}\nOut:"),
        (["--template", "Q {question} A"], "Q {question} A"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_the_template_is_chosen_by_name_or_written(
    run: Run, fake: FakeSession, picture: str, given: list[str], template: str | None, more: list[str]
) -> None:
    assert run("caption", picture, *given, *more).code == 0
    assert fake.templates == [template]


def test_a_template_without_a_place_for_the_question_is_refused(run: Run, fake: FakeSession, picture: str) -> None:
    result = run("caption", picture, "--template", "relaesed")
    assert result.code == 2
    assert "neither released nor training" in result.err


def test_every_option_of_sampling_arrives(run: Run, fake: FakeSession, picture: str) -> None:
    given = {"temperature": 0.5, "top_k": 7, "top_p": 0.8, "min_p": 0.1, "repetition_penalty": 1.2, "max_new_tokens": 9}
    options = "--temperature 0.5 --top-k 7 --top-p 0.8 --min-p 0.1 --repetition-penalty 1.2 --max-new-tokens 9".split()
    assert run("caption", picture, "--stream", *options, "--seed", "1").code == 0
    assert {name: getattr(fake.asked[0][1], name) for name in given} == given


def test_a_quantization_without_its_kernels_is_a_device_error(run: Run, picture: str) -> None:
    for arguments in (["caption", picture], ["generate", "fox", "-o", "new.png"]):
        result = run(*arguments, "-m", "nano", "--device", "cpu", "--quantize", "fp8")
        assert (result.code, result.out) == (5, "")
        assert "--quantize fp8 is of no use here: a CPU has no 8-bit floats" in result.err


def test_deterministic_runs_have_full_batches_and_the_kernels_that_repeat(
    run: Run, fake: FakeSession, pictures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    asked: list[bool] = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", asked.append)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    result = run("caption", *pictures, "--deterministic", "-v", "--batch-size", "3")
    assert (result.code, asked, torch.backends.cudnn.benchmark) == (0, [True], False)
    assert "deterministic: " in result.err
    assert len(fake.templates) == 1  # one batch of all three
