import shutil
import subprocess

import pytest

from omnimamba_cli.cli.app import COMMANDS
from tests.cli.conftest import Run


def test_the_page_has_a_section_a_command_with_its_options(run: Run) -> None:
    result = run("man")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(".TH OMNIMAMBA 1")
    for name in COMMANDS:
        assert f"\n.SH OMNIMAMBA {name.upper()}\n" in result.out
    assert "\\-\\-skip\\-existing" in result.out


@pytest.mark.skipif(shutil.which("man") is None, reason="needs man")
def test_man_shows_it_as_it_is_meant(run: Run) -> None:
    page = run("man").out
    done = subprocess.run(
        ["man", "--warnings", "-l", "-"],
        input=page,
        capture_output=True,
        text=True,
        env={"MANWIDTH": "80", "PATH": "/usr/bin:/bin"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "omnimamba caption fox.png" in done.stdout
    assert "--from FILE" in done.stdout
    # what roff could take for its own
    assert "'{dir}/{stem}.txt'" in done.stdout
    assert run("caption", "--help").out.splitlines()[0] in done.stdout
