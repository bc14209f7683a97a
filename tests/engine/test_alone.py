"""Two processes at one output: the second is refused, and one that was killed lets go at once."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from omnimamba_cli.engine.alone import alone
from omnimamba_cli.engine.encoding import TokenizeSettings, Tokenizing
from omnimamba_cli.engine.training import train
from omnimamba_cli.errors import InputError
from tests.train.conftest import Data, data, stage

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
__all__ = ["data"]  # a fixture

HOLDER = """
import os, sys, time
from pathlib import Path
from omnimamba_cli.engine.alone import alone
with alone(Path(sys.argv[1]), Path(sys.argv[1])):
    reader = os.fork()  # as a process that reads data
    if not reader:
        time.sleep(60)
        os._exit(0)
    print(reader, flush=True)
    sys.stdin.read()
"""
Hold = Callable[[Path], "subprocess.Popen[str]"]


@pytest.fixture
def hold() -> Iterator[Hold]:
    """`hold(path)` starts a process that holds a lock until its stdin is closed, and one that it has forked."""
    begun: list[subprocess.Popen[str]] = []
    readers: list[int] = []

    def start(path: Path) -> "subprocess.Popen[str]":
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        begun.append(holder)
        assert holder.stdout is not None
        readers.append(int(holder.stdout.readline()))
        return holder

    yield start
    for reader in readers:  # they have the pipes too
        os.kill(reader, signal.SIGKILL)
    for holder in begun:
        holder.communicate()


def test_a_second_process_is_refused_and_a_killed_one_lets_go_though_its_readers_live(
    hold: Hold, tmp_path: Path
) -> None:
    lock = tmp_path / "lock"
    first = hold(lock)
    with pytest.raises(InputError, match="another process is writing out") as error, alone(lock, Path("out")):
        pass
    assert "wait for it" in (error.value.hint or "")
    first.kill()
    first.wait()
    with alone(lock, Path("out")):
        assert lock.exists()
    assert not lock.exists()


def test_training_and_tokenizing_are_alone_at_their_outputs(
    hold: Hold, data: Data, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    hold(tmp_path / "run" / ".running")
    hold(tmp_path / "codes.jsonl.partial.lock")
    with pytest.raises(InputError, match=r"another process is writing .*run"):
        list(train(stage("t2i", data, tiny_model, tmp_path / "run")))
    settings = TokenizeSettings(data=(data.captions,), vq=tiny_model, output=tmp_path / "codes.jsonl", device="cpu")
    with pytest.raises(InputError, match=r"another process is writing .*codes\.jsonl"):
        list(Tokenizing(settings).run())
