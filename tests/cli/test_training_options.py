"""Every option of the training commands arrives in the engine's settings, and how a run ended is its exit code."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from omnimamba_cli.engine import encoding, tokenizing, training, vq_training
from omnimamba_cli.train.events import Event, Finished, Saved
from tests.cli.conftest import Run

Settings = Any  # Any: of four engines

LOOP = {
    "--steps": "7",
    "--lr": "0.5",
    "--warmup": "3",
    "--weight-decay": "0.25",
    "--clip": "0.75",
    "--accumulate": "4",
    "--ema": "0.9",
    "--log-every": "6",
    "--save-every": "8",
    "--save-minutes": "9.5",
    "--keep": "5",
    "--max-minutes": "11",
    "--clock-minutes": "12",
    "--workers": "13",
    "--max-bad-share": "0.15",
    "--tensorboard": "",
    "--dry-run": "",
    "--seed": "14",
    "--dtype": "bf16",
    "--device": "cpu:0",
    "--resume": "",
    "--force": "",
}
START = {
    "--image-root": "pictures",
    "--tokenizer": "t.json",
    "--vision": "v",
    "--vq": "q",
    "--unfreeze": "all",
    "--vocabulary": "shared",
    "--lora": "none",
    "--checkpoint-activations": "",
    "--eval-every": "15",
    "--eval-samples": "16",
    "--caption-dropout": "0.3",
}
COMMANDS: dict[str, tuple[list[str], dict[str, str]]] = {
    "train-stage1": (
        ["train-stage1", "--task", "mmu", "--init", "nano", "--data", "a.json", "-o", "out"],
        {**LOOP, **START, "--keep-question": "", "--batch": "3", "--eval-data": "e.json"},
    ),
    "train-stage2": (
        ["train-stage2", "--data-mmu", "a.json", "--data-t2i", "b.jsonl", "-o", "out"],
        {
            **LOOP,
            **START,
            "--init": "nano",
            "--init-mmu": "m",
            "--init-t2i": "t",
            "--batch-mmu": "3",
            "--batch-t2i": "4",
            "--weight-mmu": "0.5",
            "--weight-t2i": "0.6",
            "--eval-mmu": "e.json",
            "--eval-t2i": "e.jsonl",
        },
    ),
    "train-tokenizer": (
        ["train-tokenizer", "image", "--data", "pictures", "-o", "out"],
        {
            **LOOP,
            "--preset": "1.3b",
            "--batch": "3",
            "--revive-every": "4",
            "--sheet-every": "5",
            "--compile": "",
        },
    ),
    "tokenize": (
        ["tokenize", "--data", "a.jsonl", "--vq", "vq", "-o", "codes.jsonl"],
        {
            "--image-root": "pictures",
            "--preset": "1.3b",
            "--batch-size": "3",
            "--shard": "2/3",
            "--max-bad-share": "0.15",
            "--workers": "13",
            "--device": "cpu:0",
            "--force": "",
        },
    ),
}


@pytest.fixture
def settings(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Settings]:
    """`settings("train-stage1", ...)`: what the engine is given by a command line."""
    given: list[Settings] = []

    def work(settings: Settings) -> Iterator[Event]:
        # the options as typed are among the settings, to be written down; what counts is what became of them
        given.append(dataclasses.replace(settings, options={}) if hasattr(settings, "options") else settings)
        yield Saved(path=Path("out"), step=1)

    class Work:
        total = 1

        def __init__(self, settings: Settings) -> None:
            self.run = functools.partial(work, settings)

    monkeypatch.setattr(training, "train", work)
    monkeypatch.setattr(vq_training, "train_image_tokenizer", work)
    monkeypatch.setattr(encoding, "Tokenizing", Work)
    (tmp_path / "a.jsonl").write_text("{}\n")

    def call(*arguments: str) -> Settings:
        result = run(*arguments)
        assert (result.code, result.out) == (0, "out\n"), result.err
        return given[-1]

    return call


@pytest.mark.parametrize(("command", "flag"), [(c, flag) for c, (_, flags) in COMMANDS.items() for flag in flags])
def test_every_option_reaches_the_engine(settings: Callable[..., Settings], command: str, flag: str) -> None:
    line, flags = COMMANDS[command]
    value = flags[flag]
    assert settings(*line, flag, *filter(None, [value])) != settings(*line)


def test_a_file_of_options_reaches_tokenize(settings: Callable[..., Settings], tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(
        'command = "tokenize"\ndata = "a.jsonl"\nvq = "vq"\noutput = "codes.jsonl"\nbatch-size = 3\nworkers = 2\n'
    )
    line, _ = COMMANDS["tokenize"]
    assert settings("tokenize", "--config", "run.toml") == settings(*line, "--batch-size", "3", "--workers", "2")
    assert settings("tokenize", "--config", "run.toml", "--batch-size", "4").batch == 4


def test_the_opposite_of_keeping_questions_is_the_papers_way(settings: Callable[..., Settings]) -> None:
    line, _ = COMMANDS["train-stage1"]
    assert settings(*line, "--ignore-question") == settings(*line)
    assert settings(*line, "--keep-question").questions


def test_a_text_tokenizers_size_reaches_the_engine(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def work(data: list[Path], size: int, output: Path, *, force: bool) -> Iterator[Event]:
        sizes.append(size)
        yield Saved(path=output, step=1)

    monkeypatch.setattr(tokenizing, "train_text_tokenizer", work)
    assert run("train-tokenizer", "text", "--data", "a", "--vocab-size", "512", "-o", "t.json").out == "t.json\n"
    assert sizes == [512]


@pytest.mark.parametrize(
    ("reason", "code"), [("stopped by SIGINT", 130), ("stopped by SIGTERM", 143), ("the time is over", 0)]
)
def test_a_run_that_was_stopped_says_by_what(run: Run, monkeypatch: pytest.MonkeyPatch, reason: str, code: int) -> None:
    def work(settings: Settings) -> Iterator[Event]:
        yield Saved(path=Path("out/snapshots/3"), step=3)
        yield Finished(step=3, steps=9, complete=False, reason=reason)

    monkeypatch.setattr(training, "train", work)
    result = run(*COMMANDS["train-stage1"][0])
    assert (result.code, result.out) == (code, "out/snapshots/3\n")
    assert "--resume continues" in result.err
