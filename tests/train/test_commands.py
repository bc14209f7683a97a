"""The training commands as a user calls them: options, files of options, rehearsals."""

import inspect
import json
import re
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from omnimamba_cli.cli import train_stage1, train_stage2
from omnimamba_cli.cli.app import main
from omnimamba_cli.engine.run_folder import toml
from omnimamba_cli.errors import ExitCode
from omnimamba_cli.train.events import Progress
from omnimamba_cli.train.loop import Loop
from omnimamba_cli.train.loop_config import fixed_shapes
from omnimamba_cli.train.stages import recipe
from tests.train.conftest import Data

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run("train-stage2 ...", more)`: exit code, stdout and stderr, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(line: str, *more: str | Path) -> tuple[int, str, str]:
        capfd.readouterr()
        code = int(main([*line.split(), *map(str, more)]))
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def common(data: Data, tiny_model: Path) -> list[str | Path]:
    """Options of a short stage 1 on a CPU, without where it goes."""
    options = ["--task", "t2i", "--init", tiny_model, "--data", data.codes, "--batch", "4", "--lr", "1e-3"]
    return [*options, "--device", "cpu", "--dtype", "fp32", "--workers", "0"]


def test_help_states_the_papers_settings() -> None:
    pages = {(1, "mmu"): train_stage1, (1, "t2i"): train_stage1, (2, None): train_stage2}
    for (stage, task), module in pages.items():
        row = recipe(stage, task)  # type: ignore[arg-type]  # keys of the table
        words = " ".join((inspect.getdoc(module.command) or "").split())
        lr = f"{row.lr:.0e}".replace("e-0", "e-")
        batch = f"{row.batch_mmu} mmu + {row.batch_t2i} t2i" if task is None else str(row.batch_mmu or row.batch_t2i)
        assert f"{task + ' ' if task else ''}{lr} {row.warmup:,} {row.steps:,} {batch}" in words
        if task is not None:
            assert all(part in words for part in row.parts)


def test_a_file_sets_options_and_the_command_line_wins(run: Run, common: list[str | Path], tmp_path: Path) -> None:
    # as some editors write it: with a byte order mark
    (tmp_path / "run.toml").write_text('\ufeffsteps = 1\nlog_every = 1\nsave-minutes = 0\noutput = "out"\nseed = 3\n')
    code, out, err = run("train-stage1 --config run.toml --steps 2", *common)
    assert (code, out) == (0, "out\n"), err
    settings = json.loads((tmp_path / "out" / "train.json").read_text())["settings"]["loop"]
    assert (settings["steps"], settings["seed"], settings["lr"]) == (2, 3, 1e-3)
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == 2


def test_the_effective_options_repeat_the_run(run: Run, common: list[str | Path], tmp_path: Path) -> None:
    first = run("train-stage1 --steps 2 --warmup 1 --unfreeze backbone --unfreeze towers -o one", *common)
    assert first[0] == 0, first[2]
    written = tomllib.loads((tmp_path / "one" / "train.toml").read_text())
    assert (written["command"], written["warmup"], written["unfreeze"]) == ("train-stage1", 1, ["backbone", "towers"])
    again = run("train-stage1 --config one/train.toml -o two")
    assert again[0] == 0, again[2]
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    assert tomllib.loads((tmp_path / "two" / "train.toml").read_text()) == {**written, "output": "two"}
    assert run("train-stage1 --config one/train.toml --resume")[0] == 0  # nothing left to do


def exhausted(loop: Loop, micros: object) -> None:
    if loop.step == 1:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79 GiB.")
    loop.step += 1


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            "",
            "--batch 4 --accumulate 1: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79 GiB; "
            "weights, gradients and optimizer take 0.0 GB whatever the batch\n"
            "hint: --checkpoint-activations or --accumulate 2 (the same steps, slower), or smaller --batch\n",
        ),
        (
            "--checkpoint-activations --accumulate 2",
            "hint: --accumulate 4 (the same steps, slower), or smaller --batch\n",
        ),
        ("--checkpoint-activations --accumulate 4", "hint: smaller --batch\n"),
        ("--dry-run", "hint: --checkpoint-activations or"),
    ],
)
def test_memory_that_runs_out_is_an_error_with_the_next_step(
    run: Run, common: list[str | Path], monkeypatch: pytest.MonkeyPatch, more: str, words: str
) -> None:
    monkeypatch.setattr(Loop, "take_step", exhausted)
    monkeypatch.setattr(Loop, "_report", lambda loop: Progress(step=loop.step, steps=2, values={}, seconds=0.0))
    code, out, err = run(f"train-stage1 --steps 2 -o out {more}", *common)
    assert (code, "out of memory" in out) == (ExitCode.DEVICE, False)
    assert words in err
    assert "Traceback" not in err


def test_memory_that_runs_out_later_is_resumed_from_the_snapshot(
    run: Run, data: Data, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Loop.take_step

    def second_fails(loop: Loop, micros: Sequence[object]) -> None:
        if loop.step == 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        whole(loop, micros)

    monkeypatch.setattr(Loop, "take_step", second_fails)
    line = "train-stage2 --steps 2 --save-every 1 --device cpu --workers 0 --batch-mmu 1 --batch-t2i 2 -o out"
    paths = ["--init", tiny_model, "--data-mmu", data.talks, "--data-t2i", data.codes]
    code, _, err = run(line, *paths)
    assert code == ExitCode.DEVICE
    assert (
        "out of memory with --batch-mmu 1 --batch-t2i 2 --accumulate 1: CUDA out of memory; weights, gradients" in err
    )
    assert err.endswith("smaller --batch-mmu, --batch-t2i; with --resume it goes on from the last snapshot\n")
    monkeypatch.setattr(Loop, "take_step", whole)
    code, _, err = run(f"{line} --accumulate 2 --checkpoint-activations --resume", *paths)
    assert code == 0, err
    assert "resumed at step 1" in err


def test_the_image_tokenizer_names_its_own_options_where_memory_runs_out(
    run: Run, data: Data, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Loop, "take_step", exhausted)
    line = "train-tokenizer image --steps 3 --batch 4 --workers 0 --device cpu -o vq --revive-every 0 --sheet-every 0"
    code, _, err = run(line, "--data", data.folder, "--init", tiny_model)
    assert code == ExitCode.DEVICE
    assert "hint: --accumulate 2 (the same steps, slower), or smaller --batch\n" in err


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("step = 3", ExitCode.USAGE, "has no option 'step'\nhint: did you mean 'steps'?"),
        ("resume = true", ExitCode.USAGE, "has no option 'resume'"),
        ("steps = 2.5", ExitCode.USAGE, "steps is 2.5; it must be a whole number"),
        ("steps = true", ExitCode.USAGE, "steps is True; it must be a whole number"),
        ("lr = '1e-3'", ExitCode.USAGE, "lr is '1e-3'; it must be a number"),
        ("unfreeze = ['backbone', 3]", ExitCode.USAGE, "unfreeze is 3; it must be text"),
        ("accumulate = 0", ExitCode.USAGE, "Invalid value for '--accumulate'"),
        ("task = 'talk'", ExitCode.USAGE, "Invalid value for '--task'"),
        ("command = 'train-stage2'", ExitCode.USAGE, "is for train-stage2, this is train-stage1"),
        ("steps = ", ExitCode.INPUT, "is no valid TOML"),
    ],
)
def test_a_wrong_file_is_refused(run: Run, tmp_path: Path, text: str, code: int, words: str) -> None:
    (tmp_path / "run.toml").write_text(f'init = "x"\ndata = "y"\noutput = "z"\n{text}\n')
    found, out, err = run(f"train-stage1{'' if 'task' in text else ' --task mmu'} --config run.toml")
    assert (found, out) == (code, "")
    assert words in err
    assert not (tmp_path / "z").exists()


def test_a_missing_file_of_options_is_an_input_error(run: Run) -> None:
    code, _, err = run("train-stage2 --config nowhere.toml")
    assert (code, err) == (ExitCode.INPUT, "error: nowhere.toml: no such file or directory\n")


@pytest.mark.parametrize(
    "value", ["plain", 'a "quoted" \\ \n\t\x7f\x00 name', "\u00e9\U0001f600", 3, 1e-05, 0.5, True, ["a", "b"], []]
)
def test_written_values_are_read_back(value: object) -> None:
    assert tomllib.loads(f"x = {toml(value)}")["x"] == value


def test_a_rehearsal_shows_the_plan_takes_two_steps_and_writes_nothing(
    run: Run, common: list[str | Path], tmp_path: Path
) -> None:
    code, out, err = run("train-stage1 --steps 500 --ema 0.9 --json --dry-run -o out", *common)
    assert code == 0, err
    plan, steps = map(json.loads, out.splitlines())
    trained = {row["part"]: row["trained"] for row in plan["parts"]}
    assert {part for part, count in trained.items() if count} == set(recipe(1, "t2i").parts)
    assert plan["trained"] == sum(trained.values())
    assert plan["held_bytes"] == 4 * plan["parameters"] + (4 + 8 + 4) * plan["trained"]
    assert steps["peak_bytes"] > plan["held_bytes"]
    assert steps["seconds_per_step"] > 0
    assert err.count("loss_t2i") == 2
    assert list(tmp_path.iterdir()) == []


def test_a_rehearsal_reads_as_text(run: Run, common: list[str | Path]) -> None:
    code, out, _ = run("train-stage1 --steps 500 --dry-run -o out", *common)
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["part", "parameters", "trained"]
    assert ["backbone", "-"] in [[row[0], row[-1]] for row in rows]
    assert ["batch", "t2i:", "4"] in rows
    assert any(line.startswith("peak: ") and line.endswith(" GB") for line in out.splitlines())


def test_fp16_on_a_cpu_is_refused_with_what_would_work(run: Run, common: list[str | Path]) -> None:
    code, _, err = run("train-stage1 --steps 1 -o out", *common, "--dtype", "fp16")
    assert code == ExitCode.DEVICE
    assert "hint: --dtype bf16 or fp32" in err


def test_a_start_that_is_not_there_names_the_nearest(run: Run, common: list[str | Path]) -> None:
    code, _, err = run("train-stage1 --steps 1 -o out", *common, "--init", "nanno")
    assert code == ExitCode.MODEL
    assert "hint: did you mean 'nano'?" in err


def test_fresh_weights_say_how_to_continue_trained_ones(run: Run, common: list[str | Path]) -> None:
    code, _, err = run("train-stage1 --steps 1 -o out", *common, "--init", "nano")
    assert code == ExitCode.USAGE
    assert re.search(r"hint: --tokenizer FILE; to continue the trained model: --init .*weights/nano", err)


def test_the_image_tokenizer_takes_files_of_options_and_rehearses(
    run: Run, data: Data, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "vq.toml").write_text(f"steps = 1\nbatch = 4\nrevive-every = 0\ninit = {str(tiny_model)!r}\n")
    line = "train-tokenizer image --config vq.toml --workers 0 --device cpu --sheet-every 0 -o vq"
    code, out, err = run(f"{line} --dry-run --json", "--data", data.folder)
    assert code == 0, err
    plan = json.loads(out.splitlines()[0])
    assert plan["parts"][0]["part"] == "vq"
    assert list(tmp_path.iterdir()) == [tmp_path / "vq.toml"]
    assert run(line, "--data", data.folder)[0] == 0
    # the sizes are those of --init, not the preset's
    assert json.loads((tmp_path / "vq" / "config.json").read_text())["codebook_size"] == 64
    assert tomllib.loads((tmp_path / "vq" / "train.toml").read_text())["revive-every"] == 0
    assert (tmp_path / "vq" / "curves.svg").is_file()


def test_convolutions_are_tuned_on_cuda_alone_and_only_meanwhile() -> None:
    for kind in ("cuda", "cpu"):
        with fixed_shapes(torch.device(kind)):
            assert torch.backends.cudnn.benchmark == (kind == "cuda")
        assert not torch.backends.cudnn.benchmark
