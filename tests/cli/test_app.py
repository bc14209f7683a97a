import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer

from omnimamba_cli import __version__
from omnimamba_cli.cli import app, doctor
from omnimamba_cli.errors import CheckpointError, ExitCode
from tests.cli.conftest import Process, Run, environment

GROUPS = {"data": ("check", "index")}  # commands with commands of their own
EVERY = sorted(app.COMMANDS.keys() - GROUPS) + [f"{name} {own}" for name in GROUPS for own in GROUPS[name]]


def test_version_is_the_name_and_the_number_alone(run: Run) -> None:
    result = run("--version")
    assert (result.code, result.out, result.err) == (0, f"omnimamba {__version__}\n", "")


def test_bare_command_prints_help_and_exits_2(run: Run) -> None:
    result = run()
    assert result.code == 2
    assert "Usage: omnimamba" in result.out
    assert result.err == ""


def test_help_lists_every_command_exit_code_and_variable(run: Run) -> None:
    result = run("--help")
    assert result.code == 0
    for name in app.COMMANDS:
        assert re.search(rf"^  {name}\s+\S", result.out, re.MULTILINE)
    for code in ExitCode:
        assert re.search(rf"\b{code.value}\b", result.out)
    for name in ("MODEL", "DEVICE", "DTYPE", "SEED", "KERNELS"):
        assert f"OMNIMAMBA_{name}" in result.out


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_command_has_help_with_examples(run: Run, name: str, flag: str) -> None:
    result = run(*name.split(), flag)
    assert result.code == 0
    examples = re.findall(rf"omnimamba {name}", result.out.split("Options:")[0])
    assert 3 <= len(examples) <= 5  # the usage line is one of them
    assert result.err == ""


@pytest.mark.parametrize("name", EVERY)
def test_common_options_are_on_every_command(run: Run, name: str) -> None:
    text = run(*name.split(), "--help").out
    for option in ("--quiet", "--verbose", "--color", "--json", "-q", "-v", "-h"):
        assert option in text


@pytest.mark.parametrize("name", sorted(app.COMMANDS))
def test_the_command_list_says_what_the_command_itself_says(run: Run, name: str) -> None:
    command = app.load_command(name)
    # a group's words are in its help
    text = run(name, "--help").out.split("\n", 2)[2] if isinstance(command, typer.Typer) else command.__doc__
    own = (text or "").strip().split("\n")[0]
    assert own.startswith(app.COMMANDS[name][1].rstrip("."))


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([*name.split(), "--help"] for name in EVERY)])
def test_nothing_heavy_is_imported_before_a_command_runs(arguments: list[str]) -> None:
    code = (
        "import sys; from omnimamba_cli.cli.app import main; main(sys.argv[1:]);"
        "bad = {'torch', 'timm', 'numpy', 'PIL', 'huggingface_hub', 'tokenizers'} & set(sys.modules);"
        "sys.exit(f'imported {bad}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("line", "words", "candidates"),
    [("omnimamba ca", 1, [b"caption"]), ("omnimamba caption --max", 2, [b"--max-new-tokens"])],
)
def test_completion_prints_candidates_only(process: Process, line: str, words: int, candidates: list[bytes]) -> None:
    asked = {"_OMNIMAMBA_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(words)}
    assert process(env=environment(**asked)).stdout.split() == candidates


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_with_descriptions_is_a_line_a_candidate(process: Process, shell: str) -> None:
    asked = {
        "_OMNIMAMBA_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": "omnimamba caption --a",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    lines = process(env=environment(**asked)).stdout.decode().splitlines()
    assert len(lines) == 2  # --allow-urls, --append
    assert all("--a" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [(["capton"], "caption"), (["caption", "--sed", "3"], "--seed"), (["generate", "--forse"], "--force")],
)
def test_mistyped_names_are_answered_with_the_nearest(run: Run, arguments: list[str], suggestion: str) -> None:
    result = run(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert result.err.count(suggestion) == 1
    assert "\nhint: omnimamba" in result.err


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("--offline caption fox.png", "options stand after the command: omnimamba caption --offline"),
        ("--offlin", "omnimamba --help"),
        ("caption -x.png", "the file is ./-x.png"),
        ("caption fox.png -y.png", "omnimamba caption --help"),
    ],
)
def test_an_option_that_is_none_here_is_answered_with_what_it_may_be(
    run: Run, tmp_path: Path, line: str, hint: str
) -> None:
    (tmp_path / "-x.png").touch()
    result = run(*line.split())
    assert (result.code, result.out) == (2, "")
    assert result.err.splitlines()[-1] == f"hint: {hint}"


def test_a_value_out_of_its_range_is_told_in_our_words(run: Run) -> None:
    assert "Value error" not in run("caption", "fox.png", "--dtype", "int4").err


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(doctor, "packages", fail)


class OutOfMemoryError(RuntimeError):
    """Named as torch's own."""


class KernelError(Exception):
    """As if from Triton."""

    __module__ = "triton.runtime.errors"


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (
            KernelError("at 3:4:\n    y += x\n    ^\nout of resource: shared memory"),
            5,
            "error: a kernel does not run on this GPU: out of resource: shared memory\n"
            "hint: set OMNIMAMBA_KERNELS=torch\n",
        ),
        (CheckpointError("it is broken", hint="mend it"), 4, "error: it is broken\nhint: mend it\n"),
        (OutOfMemoryError("CUDA out of memory. Tried 2 GiB\nmore"), 5, "error: out of memory: CUDA out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 5, "error: out of memory"),
        (  # an option that not every command has would be no help
            MemoryError(),
            5,
            "error: out of memory: no more is to be had\nhint: try a smaller batch, --dtype fp16 or --device cpu\n",
        ),
        (OSError(28, "No space left on device", "fox.png"), 3, "error: fox.png: no space left on device\n"),
        (KeyError("x"), 1, "error: KeyError: 'x'\nhint: this is a bug; run again with -vv"),
        (RuntimeError(""), 1, "error: RuntimeError\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_an_error_becomes_its_lines_and_exit_code(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, words: str
) -> None:
    raising(monkeypatch, error)
    result = run("doctor", "-q")
    assert (result.code, result.out) == (code, "")
    assert result.err.startswith(words)
    assert "Traceback" not in result.err


def test_traceback_is_shown_on_request_without_values(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, KeyError("x"))
    result = run("doctor", "-vv")
    assert result.code == 1
    assert "Traceback" in result.err
    assert "hint" not in result.err


def test_closed_pipe_is_silent_141() -> None:
    # the reader is gone before the first byte
    code = (
        "import sys, time; time.sleep(0.3); from omnimamba_cli.cli.output import Output, use_utf8; use_utf8();"
        "out = Output(); [out.line('x') for _ in range(100)]"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert (child.stderr.read(), child.wait(30)) == (b"", 141)


def test_help_into_a_closed_pipe_is_silent_141() -> None:
    code = "import sys, time; time.sleep(0.3); from omnimamba_cli.cli.app import main; sys.exit(main(['--help']))"
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert (child.stderr.read(), child.wait(30)) == (b"", 141)


def test_ctrl_c_ends_with_130_and_no_words() -> None:
    code = (
        "import sys, time; from omnimamba_cli.cli import app, inputs;"
        "wait = lambda picture: (sys.stdout.write('ready\\n'), sys.stdout.flush(), time.sleep(60));"
        "inputs.Picture.source = wait; sys.exit(app.main(['caption', '-']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    assert (child.returncode, out, err) == (130, b"", b"")


def test_exit_code_and_streams_of_a_real_process(process: Process) -> None:
    done = process("caption", "nothing.png")
    assert (done.returncode, done.stdout) == (3, b"")
    assert done.stderr == b"error: nothing.png: no such file\n"


def test_doctor_tells_versions_devices_and_kernels(run: Run) -> None:
    result = run("doctor", "--json")
    facts = json.loads(result.out)
    assert result.code == 0
    assert facts["schema"] == 1
    assert facts["omnimamba"] == __version__
    assert facts["packages"]["torch"]
    assert [d["device"] for d in facts["devices"]][-1] == "cpu"
    assert sum(d["auto"] is not None for d in facts["devices"]) == 1
    assert {k["op"] for k in facts["kernels"] if k["chosen"]} >= {"ssd_scan", "ssd_step", "row_step"}
    assert all(k["reason"] for k in facts["kernels"])


@pytest.mark.parametrize("name", ["triton", "nothing-like-it"])
def test_doctor_tells_everything_else_where_the_kernels_asked_for_cannot_run(
    run: Run, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("OMNIMAMBA_KERNELS", name)
    result = run("doctor")
    assert result.code == ExitCode.DEVICE
    assert f"OMNIMAMBA_KERNELS={name}" in result.err
    assert "packages" in result.out
    assert f"not used: OMNIMAMBA_KERNELS={name}" in result.out
    (only,) = json.loads(run("doctor", "--json").out)["kernels"]
    assert (only["backend"], only["chosen"]) == (name, False)


def test_doctor_reads_as_text(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIMAMBA_KERNELS", "torch")
    result = run("doctor")
    assert result.err == ""
    for words in ("packages", "devices", "kernels", "models", "OMNIMAMBA_KERNELS=torch"):
        assert words in result.out


@pytest.mark.parametrize(("given", "want"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_sleep_unless_the_user_says_otherwise(
    run: Run, monkeypatch: pytest.MonkeyPatch, given: str | None, want: str
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    run("--version")
    assert os.environ["OMP_WAIT_POLICY"] == want
