from pathlib import Path
from typing import Any

import pytest

from omnimamba_cli.cli import settings, toml_options
from omnimamba_cli.cli.app import COMMANDS, load_command
from omnimamba_cli.errors import ExitCode
from tests.cli.conftest import FakeSession, Process, Run, environment


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own file, not there yet."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("OMNIMAMBA_CONFIG", raising=False)
    path = tmp_path / "config" / "omnimamba" / "config.toml"
    path.parent.mkdir(parents=True)
    return path


def test_an_option_wins_over_the_variable_over_the_file(
    run: Run, fake: FakeSession, picture: str, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text('model = "filed"\ndevice = "cuda:3"\n[caption]\ntemperature = 0.5\nwith-filename = true\n')
    result = run("caption", picture)
    assert result.out.startswith("fox.png\t")
    monkeypatch.setenv("OMNIMAMBA_MODEL", "variable")
    run("caption", picture, "--temperature", "0.25", "--no-filename")
    run("caption", picture, "-m", "typed")
    assert fake.opened == [("filed", "cuda:3", "auto"), ("variable", "cuda:3", "auto"), ("typed", "cuda:3", "auto")]
    assert [sampling.temperature for _, sampling, _ in fake.asked] == [0.5, 0.25, 0.5]


def test_a_file_is_named_or_left_out(
    run: Run, fake: FakeSession, picture: str, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text('model = "own"')
    (tmp_path / "other.toml").write_text('model = "other"')
    run("caption", picture)
    run("caption", picture, "--config", "other.toml")
    run("--config=other.toml", "caption", picture)
    run("caption", picture, "--no-config")
    monkeypatch.setenv("OMNIMAMBA_CONFIG", "other.toml")
    run("caption", picture)
    monkeypatch.setenv("OMNIMAMBA_CONFIG", "")
    run("caption", picture)
    assert [model for model, *_ in fake.opened] == ["own", "other", "other", None, "other", None]
    # after "--" it is a word like any other
    run("caption", picture, "--", "--no-config")
    assert fake.asked[-1][0] == "--no-config"


def test_sections_are_for_their_command_alone(run: Run, fake: FakeSession, picture: str, config: Path) -> None:
    config.write_text('[generate]\nseed = 7\noutput = "{seed}.png"\n[caption]\nbatch-size = 3\n')
    assert run("generate", "a fox").out == "7.png\n"
    assert run("caption", picture).code == 0


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("model = ", ExitCode.INPUT, "config.toml is no valid TOML"),
        ("modle = 'x'", ExitCode.USAGE, "'modle' is no option for all commands\nhint: did you mean 'model'?"),
        ("[captoin]\nseed = 1", ExitCode.USAGE, "[captoin] is no command\nhint: did you mean 'caption'?"),
        (
            "[caption]\ntempertaure = 1",
            ExitCode.USAGE,
            "config.toml: caption has no option 'tempertaure'\nhint: did you mean 'temperature'?",
        ),
        ("[caption]\nzebra = 1", ExitCode.USAGE, "hint: omnimamba caption --help"),
        ("[caption]\ndtype = 'fp7'", ExitCode.USAGE, "fp7"),
        ("[caption]\nseed = -1", ExitCode.USAGE, "--seed"),
        ("[caption]\nseed = 'many'", ExitCode.USAGE, "[caption] seed is 'many'; it must be a whole number"),
        ("batch-size = 2.5", ExitCode.USAGE, "batch-size is 2.5; it must be a whole number"),
        ("prompt = 'x'", ExitCode.USAGE, "hint: put it under a [command]"),
    ],
)
def test_what_is_wrong_in_a_file_is_said(
    run: Run, picture: str, config: Path, text: str, code: ExitCode, words: str
) -> None:
    config.write_text(text)
    result = run("caption", picture)
    assert (result.code, result.out) == (code, "")
    assert result.err.startswith("error: ")
    assert words in result.err


def test_a_key_may_have_underscores(run: Run, fake: FakeSession, picture: str, config: Path) -> None:
    config.write_text('batch_size = 3\n[caption]\nwith_filename = true\nprompt = "how many?"\n')
    assert run("caption", picture).out.startswith("fox.png\t")
    assert fake.asked[-1][0] == "how many?"


@pytest.mark.parametrize("name", settings.RUNS)
def test_a_command_with_a_file_of_a_run_keeps_its_config_for_itself(run: Run, name: str) -> None:
    line = [name, "--config", "run.toml", "--no-config"]
    assert settings.take_option(line) == ([name, "--config", "run.toml"], "")
    assert "This run's options" in run(name, "--help").out


def test_the_others_take_a_file_of_defaults() -> None:
    assert {name for name in COMMANDS if "config" in toml_options.options_of(load_command(name))} == {*settings.RUNS}
    assert settings.take_option(["bench", "--config", "own.toml"]) == (["bench"], "own.toml")


@pytest.mark.parametrize("command", ["caption", "tokenize"])
def test_a_named_file_that_is_not_there_is_an_input_error(run: Run, command: str) -> None:
    result = run(command, "--config", "missing.toml")
    assert result.code == ExitCode.INPUT
    assert result.err.startswith("error: missing.toml: no such file or directory\n")
    assert run(command, "--config").code == ExitCode.USAGE


def test_doctor_says_which_file_is_read(run: Run, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("")
    assert str(config) in run("doctor").out


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"data"}))  # a group: its commands' options stay typed
def test_every_option_of_a_command_can_stand_in_its_section(name: str) -> None:
    known = toml_options.options_of(load_command(name))
    assert {"quiet", "verbose", "color"} <= set(known)
    section = {option: fitting(parameter.annotation) for option, parameter in known.items()}
    found = settings.defaults(Path("x"), {name: section}, name, load_command(name), [*COMMANDS])
    assert set(found) == {parameter.name for parameter in known.values()}


def fitting(annotation: Any) -> object:  # Any: type hints
    """A value that an option of this kind takes."""
    text = str(annotation).split("typing.Literal")[0]
    return next((value for kind, value in {"bool": True, "int": 1, "float": 1.5}.items() if kind in text), "x")


def test_the_file_costs_no_start_up(process: Process, config: Path, tmp_path: Path) -> None:
    config.write_text('model = "nano"')
    done = process("caption", "missing.png", env=environment())
    assert (done.returncode, done.stderr) == (3, b"error: missing.png: no such file\n")
