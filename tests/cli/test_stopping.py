"""Ctrl-C and SIGTERM at the moments at which Python itself would lose them."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from omnimamba_cli.cli.stopping import stoppable
from tests.cli.conftest import environment

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX signals")
SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
# sends itself a signal and passes over whatever comes of it, as libraries do around imports that may fail
CARELESS = """
import os, time
try:
    os.kill(os.getpid(), {number})
    time.sleep(0.05)
except BaseException:
    pass
{then}
"""
# opens no model but runs what the test wants, and would then answer as if nothing had been
PROGRAM = """
import os, sys, time
from omnimamba_cli import __main__
from omnimamba_cli.cli import models

class Careless:
    def __del__(self):
        os.kill(os.getpid(), {number})
        time.sleep(0.05)

def open_session(*_, **__):
    {moment}
    time.sleep({seconds})
    os._exit(0)

models.open_session = open_session
sys.argv = ["omnimamba", "caption", "a.png", "-q"]
sys.exit(__main__.run())
"""


def ended(folder: Path, moment: str, number: int, seconds: float = 20) -> "subprocess.CompletedProcess[str]":
    """A run of `caption` that gets the signal at a moment of its start."""
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    program = PROGRAM.format(moment=moment, number=int(number), seconds=seconds)
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(("number", "code"), SIGNALS)
@pytest.mark.parametrize("moment", ["import careless", "Careless()"])
def test_a_signal_that_a_library_passes_over_still_ends_the_run(
    tmp_path: Path, moment: str, number: signal.Signals, code: int
) -> None:
    (tmp_path / "careless.py").write_text(CARELESS.format(number=int(number), then=""))
    done = ended(tmp_path, moment, number)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


@pytest.mark.parametrize(("number", "code"), SIGNALS)
@pytest.mark.parametrize("name", ["torch", "slow"])
def test_the_import_of_torch_ends_at_once_and_another_with_the_second_signal(
    tmp_path: Path, name: str, number: signal.Signals, code: int
) -> None:
    again = "" if name == "torch" else f"os.kill(os.getpid(), {int(number)})"
    (tmp_path / f"{name}.py").write_text(
        CARELESS.format(number=int(number), then=f"{again}\ntime.sleep(20)\nos._exit(0)")
    )
    done = ended(tmp_path, f"import {name}", number)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_a_signal_that_is_ignored_or_taken_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stoppable():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    with pytest.raises(SystemExit), stoppable(), stoppable():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
