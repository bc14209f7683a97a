"""Real processes among other programs of a shell: pipes, signals, full disks, two at a time.

The model is one that takes no time (see light.py), but for one test that has a real, small one.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.cli import conftest
from tests.cli.conftest import environment

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
FILES = 60


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small pictures, each of its own colour."""
    folder = tmp_path_factory.mktemp("album")
    for i in range(FILES):
        Image.new("RGB", (16, 16), (i * 4, 255 - i * 4, i)).save(folder / f"{i:03} a.png")
    return folder


def command_line(*arguments: str) -> list[str]:
    """What starts the program with the light model."""
    return [sys.executable, "-m", "tests.cli.light", *arguments]


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a shell needs to find `omnimamba`."""
    folder = tmp_path_factory.mktemp("bin")
    command = folder / "omnimamba"
    command.write_text('#!/bin/sh\nexec {} -m {} "$@"\n'.format(*command_line()[::2]))
    command.chmod(0o755)
    return environment(OMP_NUM_THREADS="1", PATH=f"{folder}{os.pathsep}{os.environ['PATH']}")


def shell(line: str, folder: Path, env: dict[str, str], **options: object) -> "subprocess.CompletedProcess[str]":
    """A line of bash, with `set -o pipefail`."""
    return subprocess.run(  # type: ignore[call-overload, no-any-return]  # options are subprocess's own
        ["bash", "-o", "pipefail", "-c", line],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


def names(text: str) -> list[str]:
    return [line.split("\t")[0] for line in text.splitlines()]


@pytest.mark.skipif(shutil.which("jq") is None, reason="needs jq")
def test_find_pipes_names_in_and_jq_takes_texts_out(album: Path, env: dict[str, str]) -> None:
    line = "find . -name '*a.png' -print0 | sort -z | omnimamba caption --from - -0 --json | jq -r .text | wc -l"
    done = shell(line, album, env)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, str(FILES), "")


def test_pipes_and_strange_names_are_pictures_with_a_line_for_each_answer(
    album: Path, env: dict[str, str], tmp_path: Path
) -> None:
    shutil.copy(album / "001 a.png", tmp_path / "tab\there.png")
    done = shell("omnimamba caption -p a -p b <(cat tab*) tab*", tmp_path, env)
    assert (done.returncode, done.stderr) == (0, "")
    fields = [line.split("\t") for line in done.stdout.splitlines()]
    assert [(f[0][:5], f[1], f[2]) for f in fields[:2]] == [("/dev/", "a", "4 251 1"), ("/dev/", "b", "4 251 1")]
    assert fields[2:] == [[r"tab\there.png", "a", "4 251 1"], [r"tab\there.png", "b", "4 251 1"]]


def test_a_while_loop_keeps_its_stdin(album: Path, env: dict[str, str]) -> None:
    done = shell('ls | head -2 | while read -r f; do omnimamba caption -H "$f"; done', album, env)
    assert (done.returncode, names(done.stdout), done.stderr) == (0, ["000 a.png", "001 a.png"], "")


def test_head_ends_a_long_run_silently_with_141(album: Path, env: dict[str, str]) -> None:
    done = shell("omnimamba caption *.png --batch-size 1 | head -1; echo ${PIPESTATUS[0]}", album, env)
    first, code = done.stdout.splitlines()
    assert (names(first), code, done.stderr) == (["000 a.png"], "141", "")


def test_xargs_runs_two_at_a_time_and_no_line_is_torn(album: Path, env: dict[str, str]) -> None:
    done = shell("ls | tr '\\n' '\\0' | xargs -0 -P2 -n30 omnimamba caption -p 'what?'", album, env)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == [f"{i:03} a.png\t{i * 4} {255 - i * 4} {i}" for i in range(FILES)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("omnimamba caption '000 a.png' >&-", "error: stdout is closed"),
        ("omnimamba caption '000 a.png' > /dev/full", "error: stdout: no space left on device"),
        ("omnimamba caption *.png --json > /dev/full", "error: stdout: no space left on device"),
        ("omnimamba generate fox -o - > /dev/full", "error: stdout: no space left on device"),
        ("omnimamba caption - <&-", "error: -: stdin is empty"),
        ("omnimamba caption --from - <&-", "error: stdin is closed"),
        ("omnimamba caption *.png --append /dev/full", "error: /dev/full: is no regular file"),
    ],
)
def test_streams_that_cannot_be_used_are_one_error(album: Path, env: dict[str, str], line: str, words: str) -> None:
    if "/dev/full" in line and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    done = shell(line, album, env)
    assert (done.returncode, done.stdout) == (3, "")
    assert [text for text in done.stderr.splitlines() if text.startswith("error")] == [words] or words in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full", "2> >(true)"])
def test_a_stderr_that_takes_nothing_disturbs_no_result(album: Path, env: dict[str, str], stderr: str) -> None:
    done = shell(f"omnimamba caption '000 a.png' missing.png -v {stderr}", album, env)
    assert (done.returncode, names(done.stdout), done.stderr) == (6, ["000 a.png"], "")


def test_a_real_model_names_what_find_finds(album: Path, env: dict[str, str], tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "omnimamba").write_text('#!/bin/sh\nexec {} -m {} "$@"\n'.format(*conftest.command_line()[::2]))
    (tmp_path / "omnimamba").chmod(0o755)
    real = {**env, "PATH": f"{tmp_path}{os.pathsep}{env['PATH']}", "OMNIMAMBA_MODEL": str(tiny_model)}
    done = shell("find . -name '00*.png' -print0 | sort -z | omnimamba caption --from - -0", album, real)
    assert (done.returncode, done.stderr) == (0, "")
    assert names(done.stdout) == [f"./{i:03} a.png" for i in range(10)]


def test_results_come_while_the_list_is_still_written(album: Path, env: dict[str, str]) -> None:
    with subprocess.Popen(
        command_line("caption", "--from", "-"), cwd=album, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for name in (b"000 a.png", b"001 a.png"):
            child.stdin.write(name + b"\n")
            child.stdin.flush()
            assert child.stdout.readline().split(b"\t")[0] == name  # before the next one is named
        child.stdin.close()
        assert child.wait(60) == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_that_waits_for_names(
    album: Path, env: dict[str, str], number: signal.Signals, code: int
) -> None:
    with subprocess.Popen(
        command_line("caption", "--from", "-"),
        cwd=album,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b"000 a.png\n")
        child.stdin.flush()
        assert child.stdout.readline()
        child.send_signal(number)
        out, err = child.communicate(timeout=60)
    assert (child.returncode, out, err) == (code, b"", b"")


def moments(seed: int) -> Iterator[tuple[float, signal.Signals]]:
    """When a run is ended after its first line, and how."""
    chance = random.Random(seed)
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        yield chance.uniform(0, 0.15), number


def interrupted(arguments: list[str], log: Path, folder: Path, env: dict[str, str]) -> int:
    """Runs a command again and again, ended at some moment after a line more is there; returns how often it was."""
    ended = 0
    for pause, number in moments(7):
        before = log.stat().st_size if log.exists() else 0
        child = subprocess.Popen(
            command_line(*arguments), cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        while child.poll() is None and (not log.exists() or log.stat().st_size <= before):
            time.sleep(0.005)
        time.sleep(pause)
        child.send_signal(number)
        _, err = child.communicate(timeout=60)
        assert b"Traceback" not in err
        if child.returncode == 0:
            break
        assert child.returncode in (130, 143, -signal.SIGKILL)
        ended += 1
    return ended


def test_a_run_that_is_killed_and_repeated_loses_and_doubles_no_line(
    album: Path, env: dict[str, str], tmp_path: Path
) -> None:
    log = tmp_path / "captions.jsonl"
    # every picture twice, so that a line is known by more than its name
    (tmp_path / "list").write_text("\n".join([*map(str, sorted(album.iterdir()))] * 2))
    arguments = ["caption", "--from", str(tmp_path / "list"), "--append", str(log), "--batch-size", "2", "-q"]
    assert interrupted(arguments, log, album, env) == 4
    with log.open("ab") as file:
        file.write(b'{"schema":1,"image":"00')  # and once more, half-written
    done = subprocess.run(command_line(*arguments), cwd=album, env=env, capture_output=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert [record["image"] for record in records] == (tmp_path / "list").read_text().splitlines()
    again = subprocess.run(command_line(*arguments), cwd=album, env=env, capture_output=True, timeout=120)
    assert again.returncode == 0
    assert len(log.read_text().splitlines()) == len(records)
    # and what it says is what one picture alone is told
    alone = subprocess.run(
        command_line("caption", records[7]["image"], "--no-stream"),
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert alone.stdout == records[7]["text"] + "\n"


def test_drawings_that_were_killed_go_on_with_the_same_seeds(env: dict[str, str], tmp_path: Path) -> None:
    log, folder = tmp_path / "drawn.jsonl", tmp_path / "out"
    folder.mkdir()
    (tmp_path / "prompts").write_text("".join(f"fox {i}\n" for i in range(120)))
    arguments = [
        "generate",
        "--from",
        str(tmp_path / "prompts"),
        "-o",
        "out/",
        "--append",
        str(log),
        "--batch-size",
        "1",
    ]
    assert interrupted(arguments, log, tmp_path, env) == 4
    done = subprocess.run(command_line(*arguments), cwd=tmp_path, env=env, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert [record["prompt"] for record in records] == [f"fox {i}" for i in range(120)]
    assert [record["seed"] - records[0]["seed"] for record in records] == list(range(120))
    # SIGKILL may leave a hidden file that was being written; under its own name none is anything but whole
    drawn = sorted(p.name for p in folder.iterdir() if not p.name.startswith(".omnimamba-"))
    assert drawn == sorted(Path(record["path"]).name for record in records)
    for record in records:
        with Image.open(tmp_path / record["path"]) as image:
            assert image.text["seed"] == str(record["seed"])  # type: ignore[attr-defined]


def test_two_processes_in_one_folder_write_every_name_once(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "prompts").write_text("".join(f"fox {i}\n" for i in range(6)))
    arguments = ["generate", "--from", "prompts", "-o", "{stem}.png", "--batch-size", "1", "--json"]
    children = [
        subprocess.Popen(
            command_line(*arguments, "--seed", seed, "--skip-existing"), cwd=tmp_path, env=env, stdout=subprocess.PIPE
        )
        for seed in ("1", "1001")
    ]
    written = [json.loads(line) for child in children for line in child.communicate(timeout=120)[0].splitlines()]
    assert [child.returncode for child in children] == [0, 0]
    assert sorted(record["path"] for record in written) == [f"fox-{i}-{i + 1}.png" for i in range(6)]
    for record in written:
        with Image.open(tmp_path / record["path"]) as image:
            assert image.text["seed"] == str(record["seed"])  # type: ignore[attr-defined]
    assert not list(tmp_path.glob(".omnimamba-*"))


def test_two_processes_share_the_captions_of_one_folder(album: Path, env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    line = f"omnimamba caption *.png -o '{tmp_path}/out/{{stem}}.txt' --skip-existing --batch-size 4"
    done = shell(f"{line} & {line}; wait $!", album, env)
    assert (done.returncode, [text for text in done.stderr.splitlines() if "were done before" not in text]) == (0, [])
    assert sorted(done.stdout.splitlines()) == sorted(str(p) for p in (tmp_path / "out").iterdir())
    for i in range(FILES):
        assert (tmp_path / "out" / f"{i:03} a.txt").read_text() == f"{i * 4} {255 - i * 4} {i}\n"


def test_two_processes_never_append_to_one_file(album: Path, env: dict[str, str], tmp_path: Path) -> None:
    log = tmp_path / "captions.jsonl"
    with subprocess.Popen(
        command_line("caption", "--from", "-", "--append", str(log)), cwd=album, env=env, stdin=subprocess.PIPE
    ) as first:
        assert first.stdin is not None
        first.stdin.write(b"000 a.png\n")
        first.stdin.flush()
        while not log.exists() or not log.stat().st_size:
            time.sleep(0.01)
        second = shell(f"omnimamba caption *.png --append {log}", album, env)
        assert second.returncode == 3
        assert "another command is appending" in second.stderr
        first.stdin.close()
        assert first.wait(60) == 0
    assert len(log.read_text().splitlines()) == 1
