"""Every command line that README, the other pages and --help show is parsed; those that draw or look are run."""

import functools
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
from PIL import Image

from omnimamba_cli.cli import app
from omnimamba_cli.cli.app import COMMANDS
from tests.cli.conftest import ROOT, Run, environment

PAGES = (
    "README.md",
    "BENCHMARKS.md",
    "CONTRIBUTING.md",
    "weights/README.md",
    *(f"examples/{name}/README.md" for name in ("data", "finetune", "picturebook")),
)
RUNNABLE = {"caption", "generate", "man"}  # with a model that takes no time; the others have tests of their own
OTHERS = {"cat", "curl", "find", "grep", "head", "jq", "man", "ls", "sort", "xargs"}  # that lines may pipe through


def of_pages() -> Iterator[tuple[str, str]]:
    """(page, line) of every line of a shell block, and of every `omnimamba ...` in a text."""
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
        blocks = re.findall(r"^```(?:sh|bash)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        for line in "".join(blocks).splitlines():
            if "omnimamba" in line and not line.startswith("#"):
                yield page, line
        prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        for words in re.findall(r"`(omnimamba [^`]+)`", prose):
            yield page, " ".join(words.split())


def of_help() -> Iterator[tuple[str, str]]:
    """(command, line) of every example of a command's help."""
    for name in COMMANDS:
        text = "".join(function.__doc__ or "" for _, function in app.pages(name))
        for line in text.replace("\\\n", " ").splitlines():
            if re.match(r"\s+(\w+=\S+ )?(omnimamba|curl|find|ls|cat) ", line):
                yield name, line.strip()
    for line in (app._root.__doc__ or "").splitlines():
        if line.strip().startswith("omnimamba "):
            yield "--help", line.strip()


LINES = sorted({(where, line) for where, line in [*of_pages(), *of_help()]})


def commands(line: str) -> Iterator[list[str]]:
    """The arguments of every `omnimamba` of a shell line, without redirections and comments."""
    tokens = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
    tokens.whitespace_split = True
    tokens.commenters = "#"
    words: list[str] = []
    skip = False
    for token in [*tokens, ";"]:
        if skip:
            skip = False
        elif token and set(token) <= set("|&;()"):
            while words and re.match(r"[A-Z_]+=", words[0]):
                words.pop(0)
            if words[:1] == ["omnimamba"]:
                yield words[1:]
            words = []
        elif token and set(token) <= set("<>&"):
            skip = True
            if words and words[-1].isdigit():
                words.pop()
        else:
            words.append(token)


def test_the_pages_and_every_command_show_lines() -> None:
    shown = {arguments[0] for _, line in LINES for arguments in commands(line) if arguments}
    assert shown >= set(COMMANDS)
    assert {where for where, _ in LINES} >= {"README.md", *COMMANDS}


WHOLE = {name: app.pages(name) for name in COMMANDS}
Command = Callable[..., object] | typer.Typer
FILES = {  # options that --config finds, for the lines that show it
    "train-stage1": 'init = "nano"\ndata = ["a.jsonl"]\ntask = "t2i"\noutput = "out"\n',
    "train-stage2": 'data-mmu = ["a.json"]\ndata-t2i = ["b.jsonl"]\noutput = "out"\n',
}


def idle(function: Callable[..., object]) -> Callable[..., object]:
    """Takes what the function takes and does nothing."""

    @functools.wraps(function)
    def nothing(*_: object, **__: object) -> int:
        return 0

    return nothing


def without_work(load: Callable[[str], Command]) -> Callable[[str], Command]:
    """A command with all its options that does nothing."""

    def loaded(name: str) -> Command:
        command = load(name)
        if not isinstance(command, typer.Typer):
            return idle(command)
        group = typer.Typer(rich_markup_mode=None)
        (_, first), *below = WHOLE[name]
        group.callback(invoke_without_command=True)(idle(first))
        for words, function in below:
            group.command(words[-1])(idle(function))
        return group

    return loaded


@pytest.mark.parametrize(("where", "line"), LINES)
def test_every_shown_line_is_one_that_the_program_takes(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str, line: str
) -> None:
    monkeypatch.setattr(app, "load_command", without_work(app.load_command))
    for arguments in commands(line):
        if arguments[0] in FILES and "--config" in arguments:
            file = tmp_path / arguments[arguments.index("--config") + 1]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(FILES[arguments[0]])
        if arguments == ["COMMAND", "--help"] or arguments[-1] == "...":
            continue  # stands for any
        if len(arguments) == 1 and where.endswith(".md"):
            assert arguments[0] in COMMANDS or arguments[0].startswith("-")  # a command is named, not run
            continue
        result = run(*arguments)
        assert (result.code, result.err) == (0, ""), line


def runs(line: str) -> bool:
    """Whether a line needs nothing but a quick model and common programs."""
    names = [arguments[0] for arguments in commands(line) if arguments]
    programs = {part.split()[0] for part in re.split(r"\|", line) if part.split()}
    return bool(names) and set(names) <= RUNNABLE and programs <= OTHERS | {"omnimamba"} and "~" not in line


RUN = [(where, line) for where, line in LINES if runs(line)]


@pytest.mark.parametrize(("where", "line"), RUN)
def test_every_shown_line_about_pictures_runs(tmp_path: Path, where: str, line: str) -> None:
    for program in {part.split()[0] for part in line.split("|")} - {"omnimamba", "curl"}:
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, body in {
        "omnimamba": f'exec {sys.executable} -m tests.cli.light "$@"',
        "curl": f"cat {tmp_path}/photos/a.jpg",  # tests reach no network
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)
    here = tmp_path / "here"
    for folder in ("out", "photos", "pictures"):
        (here / folder).mkdir(parents=True)
    for name in ("photos/a.jpg", "photos/b.jpg", "fox.png", "photo.jpg", "a.png", "b.png", "pictures/3.jpg"):
        if f"-o {name}" not in line:
            Image.new("RGB", (8, 8), "red").save(here / name)
    (tmp_path / "photos").mkdir()
    shutil.copy(here / "photos" / "a.jpg", tmp_path / "photos" / "a.jpg")
    for name in ("prompts.txt", "list.txt"):
        (here / name).write_text("a red fox\ntwo cats\n" if name == "prompts.txt" else "photos/a.jpg\nphotos/b.jpg\n")
    (here / "questions.txt").write_text("what is here?\nhow many?\n")
    if "--load-state" in line:
        Image.new("RGB", (8, 8), "red").save(here / "fox.state", "png")  # what the quick model writes
    (here / "jobs.jsonl").write_text('{"prompt": "a red fox", "seed": 7, "output": "out/fox.png"}\n')
    (here / "questions.jsonl").write_text('{"image": "photos/a.jpg", "question": "how many?"}\n')
    env = environment(PATH=f"{programs}:/usr/local/bin:/usr/bin:/bin", MANWIDTH="80")
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], cwd=here, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [[], *(list(words) for name in COMMANDS for words, _ in app.pages(name))])
def test_help_fits_eighty_columns_and_is_plain_text(
    run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = run(*arguments, "--help").out
    assert [line for line in text.splitlines() if len(line) > 80] == []
    # nothing that a screen reader would spell out: boxes, colours, marks
    assert text.isascii()
    assert "\x1b" not in text
