from pathlib import Path

import pytest

from omnimamba_cli.cli import settings
from omnimamba_cli.cli.app import COMMANDS, load_command
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
    ("text", "words"),
    [
        ("model = ", "is no TOML"),
        ("modle = 'x'", "did you mean model?"),
        ("[captoin]\nseed = 1", "did you mean caption?"),
        ("[caption]\ntempertaure = 1", "did you mean temperature?"),
        ("[caption]\ndtype = 'fp7'", "fp7"),
        ("[caption]\nseed = 'many'", "--seed"),
        ("prompt = 'x'", "is no option or command"),
    ],
)
def test_what_is_wrong_in_a_file_is_wrong_use(run: Run, picture: str, config: Path, text: str, words: str) -> None:
    config.write_text(text)
    result = run("caption", picture)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ")
    assert words in result.err


def test_a_training_command_keeps_its_config_for_itself() -> None:
    line = ["train-stage2", "--config", "run.toml", "--no-config"]
    assert settings.take_option(line) == (["train-stage2", "--config", "run.toml"], "")
    assert settings.take_option(["bench", "--config", "own.toml"]) == (["bench"], "own.toml")


def test_a_named_file_that_is_not_there_is_wrong_use(run: Run, picture: str) -> None:
    assert run("caption", picture, "--config", "missing.toml").code == 2
    assert run("caption", picture, "--config").code == 2


def test_doctor_says_which_file_is_read(run: Run, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("")
    assert str(config) in run("doctor").out


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"data"}))  # a group: its commands' options stay typed
def test_every_option_of_a_command_can_stand_in_its_section(name: str) -> None:
    known = settings._options(load_command(name))
    assert {"quiet", "verbose", "color"} <= set(known)
    assert settings.defaults(Path("x"), {name: dict.fromkeys(known, 1)}, name, load_command(name), [*COMMANDS])


def test_the_file_costs_no_start_up(process: Process, config: Path, tmp_path: Path) -> None:
    config.write_text('model = "nano"')
    done = process("caption", "missing.png", env=environment())
    assert (done.returncode, done.stderr) == (3, b"error: missing.png: no such file\n")
