import io
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from omnimamba_cli import __version__
from omnimamba_cli.config import SamplingConfig
from tests.cli.conftest import FakeSession, Run


def test_a_picture_is_written_and_its_path_printed(run: Run, fake: FakeSession, tmp_path: Path) -> None:
    result = run("generate", "a red fox", "-o", "fox.png", "--seed", "7")
    assert (result.code, result.out, result.err) == (0, "fox.png\n", "")
    with Image.open(tmp_path / "fox.png") as image:
        assert image.size == (8, 8)
        assert image.text == {"prompt": "a red fox", "seed": "7", "model": "fake", "version": __version__}  # type: ignore[attr-defined]


def test_metadata_can_be_left_out(run: Run, fake: FakeSession, tmp_path: Path) -> None:
    run("generate", "a red fox", "-o", "fox.png", "--no-metadata")
    with Image.open(tmp_path / "fox.png") as image:
        assert image.text == {}  # type: ignore[attr-defined]


def test_any_prompt_fits_into_the_metadata(run: Run, fake: FakeSession, tmp_path: Path) -> None:
    prompt = "狐 \U0001f98a " * 1000
    assert run("generate", prompt, "-o", "fox.png").code == 0
    with Image.open(tmp_path / "fox.png") as image:
        assert image.text["prompt"] == prompt  # type: ignore[attr-defined]


def test_an_undrawn_seed_is_reported_everywhere(run: Run, fake: FakeSession, tmp_path: Path) -> None:
    result = run("generate", "a", "-o", "a.png", "--json")
    record = json.loads(result.out)
    assert result.err == f"seed {record['seed']}\n"
    with Image.open(tmp_path / "a.png") as image:
        assert image.text["seed"] == str(record["seed"])  # type: ignore[attr-defined]
    assert run("generate", "b", "-o", "b.png", "-q").err == ""


def test_json_tells_what_was_made(run: Run, fake: FakeSession) -> None:
    result = run("generate", "a fox", "-n", "2", "--seed", "3", "-o", "f.png", "--json")
    records = [json.loads(line) for line in result.out.splitlines()]
    assert records[1] == {
        "schema": 1,
        "path": "f-2.png",
        "prompt": "a fox",
        "seed": 4,
        "width": 8,
        "height": 8,
        "run_seed": 3,
        "format": "png",
        "seconds": 0.1,
        "model": "fake",
    }


def test_picture_bytes_go_to_stdout_for_a_dash(fake: FakeSession, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    from omnimamba_cli.cli.app import main

    assert main(["generate", "a", "-o", "-", "-q", "--format", "jpeg"]) == 0
    data, err = capfdbinary.readouterr()
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "JPEG"
    assert err == b""


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.png"])
def test_the_suffix_decides_the_format(run: Run, fake: FakeSession, tmp_path: Path, name: str) -> None:
    run("generate", "a", "-o", name)
    with Image.open(tmp_path / name) as image:
        assert image.format == {"jpg": "JPEG", "webp": "WEBP", "png": "PNG"}[name[2:]]


def test_an_existing_file_is_kept_without_force(run: Run, fake: FakeSession, tmp_path: Path) -> None:
    (tmp_path / "fox.png").write_bytes(b"old")
    result = run("generate", "a", "-o", "fox.png")
    assert (result.code, result.out) == (3, "")
    assert result.err.splitlines()[0] == "error: fox.png: exists and is not overwritten"
    assert "--force" in result.err
    assert (tmp_path / "fox.png").read_bytes() == b"old"
    assert fake.opened == []
    assert run("generate", "a", "-o", "fox.png", "--force").code == 0
    assert (tmp_path / "fox.png").read_bytes() != b"old"


def test_skipped_pictures_leave_the_others_their_seeds(run: Run, fake: FakeSession, tmp_path: Path) -> None:
    (tmp_path / "f-2.png").write_bytes(b"old")
    result = run("generate", "a", "-n", "4", "--seed", "10", "-o", "f.png", "--skip-existing")
    assert result.out.split() == ["f-1.png", "f-3.png", "f-4.png"]
    assert [seeds for _, seeds, *_ in fake.drawn] == [[10, 12, 13]]
    assert (tmp_path / "f-2.png").read_bytes() == b"old"


def test_when_all_exist_no_model_is_loaded(run: Run, fake: FakeSession, tmp_path: Path) -> None:
    (tmp_path / "f.png").write_bytes(b"old")
    assert run("generate", "a", "-o", "f.png", "--skip-existing").code == 0
    assert fake.opened == []


def test_prompts_come_from_stdin_one_a_line(run: Run, fake: FakeSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a fox\na cat\n")))
    result = run("generate", "-", "--seed", "1", "-o", "{stem}-{seed}.png")
    assert result.out.split() == ["a-fox-1.png", "a-cat-2.png"]
    # one batch or two: as many lines as were there when the model was free
    assert [prompt for prompts, *_ in fake.drawn for prompt in prompts] == ["a fox", "a cat"]


def test_the_models_own_sampling_holds_unless_an_option_speaks(run: Run, fake: FakeSession) -> None:
    run("generate", "a", "-o", "a.png")
    run("generate", "a", "-o", "b.png", "--top-k", "50", "--batch-size", "2")
    assert [sampling for *_, sampling, _ in fake.drawn] == [
        None,
        SamplingConfig(temperature=1.0, guidance=3.0, top_k=50),
    ]
    assert fake.drawn[1][3] == 2


def test_an_empty_prompt_draws(run: Run, fake: FakeSession) -> None:
    result = run("generate", "", "-o", "a.png")
    assert (result.code, fake.drawn[0][0]) == (0, [""])


def test_a_prompt_that_is_cut_is_said_so_once(run: Run, fake: FakeSession) -> None:
    result = run("generate", "fox " * 2500, "-n", "2", "-o", "a.png", "--seed", "1")
    assert result.code == 0
    assert result.err.count("longer than the 68 tokens") == 1
    assert len(result.err) < 200


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["a", "-o", "-", "--json"],
        ["a", "-o", "-", "-n", "2"],
        ["a", "-n", "0"],
        ["a", "--force", "--skip-existing"],
        ["a", "-o", "a.gif"],
        ["a", "--guidance", "-1"],
    ],
)
def test_wrong_use_is_refused_before_any_work(run: Run, fake: FakeSession, arguments: list[str]) -> None:
    result = run("generate", *arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ")
    assert fake.opened == []


def test_an_interrupted_run_keeps_what_is_finished(
    run: Run, fake: FakeSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = fake.stream_generate

    def interrupted(prompts: list[str], **options: int) -> object:
        yield from list(finished(prompts, seed=options["seed"]))[:2]
        raise KeyboardInterrupt

    monkeypatch.setattr(fake, "stream_generate", interrupted)
    result = run("generate", "a", "-n", "4", "-o", "f.png", "--seed", "1")
    assert (result.code, result.err) == (130, "")
    assert result.out.split() == sorted(p.name for p in tmp_path.iterdir()) == ["f-1.png", "f-2.png"]


def test_every_option_of_sampling_arrives(run: Run, fake: FakeSession) -> None:
    given = {"temperature": 0.5, "top_k": 7, "top_p": 0.8, "min_p": 0.1, "repetition_penalty": 1.2, "guidance": 2.0}
    options = "--temperature 0.5 --top-k 7 --top-p 0.8 --min-p 0.1 --repetition-penalty 1.2 --guidance 2".split()
    result = run("generate", "a", "-o", "a.png", "--metadata", "--candidates", "3", "--deterministic", *options)
    assert result.code == 0
    sampling = fake.drawn[0][2]
    assert sampling is not None
    assert {name: getattr(sampling, name) for name in given} == given
    assert sampling.candidates == 3
