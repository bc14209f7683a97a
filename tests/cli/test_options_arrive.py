"""Every option of every command is used by a test of that command; those that many share arrive at what they are for.

`used` reads the tests: a test uses an option where it, or what it takes from its file or a conftest, holds both the
command's words and the option.
"""

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from omnimamba_cli.cli import bench as bench_command
from omnimamba_cli.cli import chat, data, models
from omnimamba_cli.cli.options import ModelOptions
from omnimamba_cli.engine import convert_files, downloading
from omnimamba_cli.errors import InputError
from tests.cli.conftest import ROOT, FakeSession, Run
from tests.cli.test_contract import COMMON, FLAGS

SHORT = {"-o": "--output", "-n": "--count", "-p": "--prompt", "-m": "--model", "-H": "--with-filename"}
FAILS = {  # a line of each command that ends with an error, before any work
    "caption": "gone.png",
    "chat": "gone.png",
    "generate": "fox -o gone/fox.png",
    "download": "omnimamba-1.3b --from gone",
    "remove": "gone --yes",
    "export": "gone -o out",
    "convert": "gone out",
    "bench": "--plot gone/speed.svg",
    "eval": "picturebook --data gone",
    "data check": "gone.json",
    "data index": "gone.tar -o gone/all.shards.jsonl",
    "train-tokenizer": "text --data gone.txt -o out",
    "tokenize": "--data gone.json --vq gone -o out.jsonl",
    "train-stage1": "--task mmu --init gone --data gone.json -o out",
    "train-stage2": "--init gone --data-mmu gone.json --data-t2i gone.jsonl -o out",
}
TELLS = ("models", "doctor", "man")  # commands with nothing to fail at


def words_of(node: ast.AST) -> Iterator[str]:
    """Every word of the texts in a piece of code."""
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield from re.split(r"[\s=]+", part.value)


def names_of(node: ast.AST) -> set[str]:
    """What a piece of code takes from elsewhere: names, and a test's fixtures."""
    parts = list(ast.walk(node))
    fixtures = {part.arg for part in parts if isinstance(part, ast.arg)}
    return fixtures | {part.id for part in parts if isinstance(part, ast.Name)}


def top_level(path: Path) -> dict[str, ast.stmt]:
    """The functions, classes and constants of a file."""
    found: dict[str, ast.stmt] = {}
    for part in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(part, ast.FunctionDef | ast.ClassDef):
            found[part.name] = part
        elif isinstance(part, ast.Assign):
            found |= {target.id: part for target in part.targets if isinstance(target, ast.Name)}
        elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            found[part.target.id] = part
    return found


def used(folder: Path) -> set[tuple[str, str]]:
    """(command, option) of every test below a folder."""
    pairs: set[tuple[str, str]] = set()
    shared: dict[str, ast.stmt] = {}
    for path in folder.rglob("conftest.py"):
        shared |= top_level(path)
    for path in folder.rglob("test_*.py"):
        if path.name in ("test_contract.py", "test_documented.py"):
            continue  # they list every option
        known = {**shared, **top_level(path)}
        for name in [name for name in top_level(path) if name.startswith("test_")]:
            reached, todo = {name}, [name]
            words: set[str] = set()
            while todo:
                part = known[todo.pop()]
                words |= {SHORT.get(word, word) for word in words_of(part)}
                more = {n for n in names_of(part) & known.keys() if n.isupper() or not n.startswith("test_")} - reached
                reached |= more
                todo += more
            commands = [command for command in FLAGS if set(command.split()) <= words]
            pairs |= {(command, word) for command in commands for word in words if word.startswith("--")}
    return pairs


USED = used(ROOT / "tests")


@pytest.mark.parametrize("command", FLAGS)
def test_every_option_is_used_by_a_test_of_its_command(command: str) -> None:
    assert [flag for flag in FLAGS[command].split() if (command, flag) not in USED] == []


def test_an_option_in_a_test_of_another_command_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text(
        'LINE = "caption a.png --top-k 3"\n'
        "def test_a(run): run(LINE)\n"
        'def test_b(run): run("chat", "-m", "x")\n'
        'def test_c(run): run("--seed")\n'
    )
    assert used(tmp_path) == {("caption", "--top-k"), ("chat", "--model")}


# what every command has


def test_every_command_is_here() -> None:
    assert {*FAILS, *TELLS} == set(FLAGS)
    assert COMMON.split() == ["--quiet", "--verbose", "--color", "--json", "--help"]


@pytest.mark.parametrize("command", FAILS)
def test_an_error_follows_the_options_of_every_command(run: Run, command: str) -> None:
    line = [*command.split(), *FAILS[command].split()]
    coloured = run(*line, "--color", "always")
    assert coloured.code in (3, 4)
    assert "\x1b[31merror:\x1b[0m " in coloured.err
    quiet = run(*line, "--quiet", "--color", "never", "--json")
    assert quiet.code == coloured.code
    assert all(json.loads(line)["error"] for line in quiet.out.splitlines())  # of data check, a line for each file
    assert quiet.err.startswith("error: ")  # and no word before it
    assert "Traceback" not in quiet.err
    assert run(*line, "-vv").code == coloured.code
    # also what is told before the options are known
    assert "\x1b[31merror:\x1b[0m " in run(*line, "--color", "always", "--no-such").err
    assert "\x1b[31merror:\x1b[0m " in run(*line, "--color=always", "--no-such").err


@pytest.mark.parametrize("command", TELLS)
def test_what_only_tells_follows_them_too(run: Run, command: str) -> None:
    told = run(command, "--quiet", "--verbose", "--color", "always", "--json")
    assert told.code == 0
    assert all(json.loads(line)["schema"] == 1 for line in told.out.splitlines())


# which model, and where it runs


WHERE = "--model some --offline --device cpu:0 --dtype fp16"
LOOKS = {
    "caption": "caption a.png --quantize int8",
    "chat": "chat a.png --quantize int8",
    "generate": "generate fox --quantize int8",
    "eval": "eval picturebook --data . --quantize int8",
}


@pytest.mark.parametrize("command", LOOKS)
def test_the_model_and_its_place_reach_the_session(
    run: Run, picture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    (tmp_path / picture).rename(tmp_path / "a.png")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    asked: list[dict[str, object]] = []

    def open_session(out: object, where: ModelOptions, *, task: str | None = None) -> FakeSession:
        asked.append(asdict(where))
        raise InputError("that is all")

    monkeypatch.setattr(models, "open_session", open_session)
    assert run(*LOOKS[command].split(), *WHERE.split()).code == 3
    assert asked == [{"model": "some", "offline": True, "device": "cpu:0", "dtype": "fp16", "quantize": "int8"}]


def test_the_same_reaches_bench(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str | None, str, str]] = []

    def measure(out: object, config: object) -> list[object]:
        asked.append((config.model, config.device, config.dtype))  # type: ignore[attr-defined]  # a BenchConfig
        raise InputError("that is all")

    monkeypatch.setattr(bench_command, "measure", measure)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    (tmp_path / "speed.svg").touch()
    assert run("bench", *WHERE.split(), "--plot", "speed.svg").code == 3
    assert asked == []
    assert run("bench", *WHERE.split(), "--plot", "speed.svg", "--force").code == 3
    assert asked == [("some", "cpu:0", "fp16")]


def test_how_words_are_drawn_reaches_a_chat(
    run: Run, fake: FakeSession, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    talks: list[chat.Talk] = []

    def converse(out: object, talk: chat.Talk, keyboard: object) -> int:
        talks.append(talk)
        return 0

    monkeypatch.setattr(chat, "converse", converse)
    options = "--temperature 0.5 --top-k 3 --top-p 0.25 --min-p 0.125 --repetition-penalty 1.5 --max-new-tokens 7"
    assert run("chat", *options.split(), "--seed", "11").code == 0
    sampling = talks[0].settings.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0.5, 3, 0.25, 0.125)
    assert (sampling.repetition_penalty, sampling.max_new_tokens, talks[0].settings.seed) == (1.5, 7, 11)


# what may be replaced, and what else only the engine sees


def test_force_and_dtype_reach_the_makers_of_models(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, object]] = []

    def made(*_: object, dtype: str, force: bool, **__: object) -> Iterator[object]:
        asked.append((dtype, force))
        raise InputError("that is all")

    (tmp_path / "a.pth").touch()
    monkeypatch.setattr(convert_files, "convert", made)
    monkeypatch.setattr(downloading, "plan", made)
    assert run("convert", "a.pth", "out", "--dtype", "bf16").code == 3
    assert run("convert", "a.pth", "out", "--force").code == 3
    assert run("download", "--dtype", "bf16").code == 3
    assert run("download", "--force").code == 3
    assert [force for _, force in asked] == [False, True, False, True]
    assert [dtype for dtype, force in asked if not force] == ["bf16", "bf16"]


def test_results_of_eval_are_replaced_with_force(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "result.json").touch()
    monkeypatch.setattr(models, "open_session", lambda *_, **__: FakeSession())
    line = "eval picturebook --data . --draw 0 --out result.json".split()
    assert "exists and is not overwritten" in run(*line).err
    assert "exists and is not overwritten" not in run(*line, "--force").err


def test_data_are_checked_for_the_model_that_is_named(
    run: Run, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "talks.jsonl").write_text('{"conversations": []}\n')
    asked: list[tuple[str, int]] = []
    check = data._check

    def remembered(out: object, path: Path, settings: object) -> object:
        asked.append((settings.config.name, settings.seed))  # type: ignore[attr-defined]  # CheckSettings
        return check(out, path, settings)  # type: ignore[arg-type]

    monkeypatch.setattr(data, "_check", remembered)
    name = json.loads((tiny_model / "config.json").read_text())["name"]
    run("data", "check", "talks.jsonl", "--model", str(tiny_model), "--seed", "5")
    words = str(tiny_model / "tokenizer.json")
    run("data", "check", "talks.jsonl", "--preset", "370m", "--tokenizer", words)
    assert asked == [(name, 5), ("omnimamba-370m", 0)]
    assert "gone.json" in run("data", "check", "talks.jsonl", "--tokenizer", "gone.json").err
