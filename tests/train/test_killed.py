"""Runs that are killed, stopped or run out of disk, as real processes: what is resumed equals what was never stopped.

One process imports everything once and forks the runs, which then start at once; it has trained nothing itself.
"""

import dataclasses
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from omnimamba_cli.cli.app import main
from omnimamba_cli.engine.training import StageSettings, train
from omnimamba_cli.train import metrics, snapshots
from tests.train.conftest import Data, loop, stage

ROOT = Path(__file__).resolve().parents[2]
STEPS, KILLS = 12, 6
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def settings(data: Data, init: Path, output: Path, **changes: Any) -> StageSettings:
    config = loop(steps=STEPS, ema=0.9, save_every=1, log_every=3, warmup=2)
    return stage("both", data, init, output, loop=config, resume=True, **changes)


def child(work: Callable[[], int]) -> int:
    """The process id of some work, which never returns here."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        code = work()
    finally:
        os._exit(code)


def done(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def finish(run: StageSettings) -> int:
    list(train(run))
    return 0


def command(log: Path, run: StageSettings, **limits: int) -> int:
    """The run by its command line, its words in a file, perhaps with files of a largest size."""
    for name, size in limits.items():
        resource.setrlimit(getattr(resource, name), (size, size))
    options = f"train-stage2 --resume --steps {STEPS} --lr 1e-3 --warmup 2 --ema 0.9 --log-every 3 --save-every 1"
    files = ["--init", run.init, "--data-mmu", *run.data_mmu, "--data-t2i", *run.data_t2i, "-o", run.output]
    more = "--save-minutes 0 --batch-mmu 4 --batch-t2i 4 --workers 0 --device cpu --dtype fp32"
    with log.open("a") as words, redirect_stdout(words), redirect_stderr(words):
        return main([*options.split(), *map(str, files), *more.split()])


def wait_for_step(output: Path, step: int) -> None:
    end = time.monotonic() + 60
    while newest(output) < step:
        assert time.monotonic() < end
        time.sleep(0.005)


def newest(output: Path) -> int:
    """The step of the newest snapshot, 0 for none."""
    return max((int(p.name[5:]) for p in snapshots.newest_first(output / "snapshots")), default=0)


def kill_again_and_again(run: StageSettings, seconds_a_step: float) -> int:
    """Ends the run at random moments until it has been KILLS times, then lets it finish. How often it was running.

    A moment is a step and a while after it: by the clock alone a busy machine would come too late or too early.
    """
    draw, killed = random.Random(5), 0
    for _ in range(KILLS):
        step = newest(run.output) + draw.randint(0, 1)
        pid = child(lambda: finish(run))
        wait_for_step(run.output, step)
        time.sleep(draw.random() * seconds_a_step)
        os.kill(pid, signal.SIGKILL)
        killed += done(pid) == -signal.SIGKILL
    assert done(child(lambda: finish(run))) == 0
    return killed


def nest(folder: Path, init: Path, data: Data) -> dict[str, Any]:
    """All scenarios; what is to be known of them beside their directories."""
    whole = settings(data, init, folder / "whole")
    begun = time.monotonic()
    assert done(child(lambda: finish(whole))) == 0
    facts: dict[str, Any] = {}
    killed = dataclasses.replace(whole, output=folder / "killed")
    facts["killed"] = kill_again_and_again(killed, (time.monotonic() - begun) / STEPS)
    for name in ("SIGTERM", "SIGINT"):
        run = dataclasses.replace(whole, output=folder / name)
        pid = child(lambda run=run, name=name: command(folder / f"{name}.log", run))
        wait_for_step(run.output, 3)
        os.kill(pid, getattr(signal, name))
        facts[name] = done(pid)
        facts[f"{name} step"] = next(snapshots.newest_first(run.output / "snapshots")).name
        assert done(child(lambda run=run, name=name: command(folder / f"{name}.log", run))) == 0
    full = dataclasses.replace(whole, output=folder / "full", loop=dataclasses.replace(whole.loop, max_minutes=1e-4))
    assert done(child(lambda: finish(full))) == 0
    before = next(snapshots.newest_first(full.output / "snapshots")).name
    facts["full"] = done(child(lambda: command(folder / "full.log", full, RLIMIT_FSIZE=100_000)))
    facts["full kept"] = next(snapshots.newest_first(full.output / "snapshots")).name == before
    assert done(child(lambda: command(folder / "full.log", full))) == 0
    broken = dataclasses.replace(whole, output=folder / "broken")
    pid = child(lambda: finish(broken))
    wait_for_step(broken.output, 5)
    os.kill(pid, signal.SIGKILL)
    done(pid)
    last = next(snapshots.newest_first(broken.output / "snapshots")) / snapshots.TENSORS
    last.write_bytes(last.read_bytes()[:-100])
    assert done(child(lambda: command(folder / "broken.log", broken))) == 0
    return facts


@pytest.fixture(scope="module")
def outcome(data: Data, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What nest told, with its folder."""
    folder = tmp_path_factory.mktemp("killed")
    paths = {f.name: str(getattr(data, f.name)) for f in dataclasses.fields(data)}
    code = (
        "import json, pathlib as p, torch; torch.set_num_threads(1); from tests.train import test_killed as t;"
        f"data = t.Data(**{{k: p.Path(v) for k, v in {paths!r}.items()}});"
        f"print(json.dumps(t.nest(p.Path({str(folder)!r}), p.Path({str(tiny_model)!r}), data)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)
    assert told.returncode == 0, told.stderr
    return {**json.loads(told.stdout.splitlines()[-1]), "folder": folder}


@pytest.mark.parametrize("name", ["killed", "SIGTERM", "SIGINT", "full", "broken"])
def test_what_was_resumed_equals_what_never_stopped(name: str, outcome: dict[str, Any]) -> None:
    whole, other = outcome["folder"] / "whole", outcome["folder"] / name
    logs = [
        [{k: v for k, v in line.items() if k not in ("seconds", "tokens_per_s")} for line in metrics.read(path)]
        for path in (whole / "metrics.jsonl", other / "metrics.jsonl")
    ]
    assert logs[0] == logs[1]
    assert [line["step"] for line in logs[0]] == [3, 6, 9, 12]
    assert (whole / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert list(other.rglob("*.partial")) == []


def test_the_killed_run_was_running(outcome: dict[str, Any]) -> None:
    assert outcome["killed"] >= KILLS // 2


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_stopped_run_saves_first_and_says_how_to_go_on(name: str, code: int, outcome: dict[str, Any]) -> None:
    assert outcome[name] == code
    step = int(outcome[f"{name} step"][5:])
    assert 3 <= step < STEPS
    said = (outcome["folder"] / f"{name}.log").read_text()
    assert f"stopped at step {step} of {STEPS}: stopped by {name}; --resume continues" in said
    assert f"resumed at step {step}" in said


def test_a_full_disk_ends_the_run_and_leaves_the_last_snapshot(outcome: dict[str, Any]) -> None:
    assert (outcome["full"], outcome["full kept"]) == (3, True)
    said = (outcome["folder"] / "full.log").read_text()
    assert "cannot be written" in said
    assert "hint: free some space, then --resume" in said


def test_a_broken_snapshot_is_passed_over_and_named(outcome: dict[str, Any]) -> None:
    assert "is damaged" in (outcome["folder"] / "broken.log").read_text()
    assert "; using the one before" in (outcome["folder"] / "broken.log").read_text()
