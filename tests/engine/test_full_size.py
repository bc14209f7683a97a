"""From an empty disk to a caption and a picture at full size: random weights, real lengths, hashes and memory.

Takes some 25 GB of disk and, on two cores, some ten minutes: `pytest -m slow tests/engine/test_full_size.py`.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from omnimamba_cli.engine import downloading, lock
from omnimamba_cli.engine.published import OMNIMAMBA_1_3B
from tests.loopback_hub import Hub, serve

ROOT = Path(__file__).resolve().parents[2]
DISK_BYTES = 25 * 10**9
LIMIT_BYTES = 8 * 2**30  # resident memory in which the 1.3B captions on a CPU

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="measures memory by wait4"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A place for it all, emptied afterwards: pytest itself would keep it."""
    path = tmp_path_factory.mktemp("full")
    if (free := shutil.disk_usage(path).free) < DISK_BYTES:
        pytest.skip(f"needs {DISK_BYTES / 1e9:.0f} GB of disk, {free / 1e9:.0f} GB are free")
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def full_hub(folder: Path) -> Iterator[Hub]:
    from tests import full_size

    paths = full_size.write(folder / "published")
    with serve() as hub:
        for file in OMNIMAMBA_1_3B.files:
            hub.add(file.repo, {file.file: paths[file.key]})
        yield hub


def start(folder: Path, *arguments: str, **environment: str) -> "subprocess.Popen[bytes]":
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "hf"), **environment}
    env["XDG_DATA_HOME"] = str(folder / "data")
    command = [sys.executable, "-m", "omnimamba_cli", *arguments]
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def peak_bytes(process: "subprocess.Popen[bytes]") -> int:
    """Most resident memory of a process, mapped files included; it must end well."""
    assert process.stderr is not None
    words = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, words
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.fixture(scope="module")
def model(folder: Path, full_hub: Hub) -> Path:
    """The model directory, after a download that was killed twice."""
    directory = folder / "data" / "omnimamba" / "omnimamba-1.3b"
    online = {"HF_ENDPOINT": full_hub.url, "HF_HUB_OFFLINE": "0"}
    for least in (300_000_000, 1_000_000_000):
        process = start(folder, "download", **online)
        while sum(p.stat().st_size for p in downloading.staging(directory).glob("*.partial")) < least:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not directory.exists()
    process = start(folder, "download", **online)
    out, err = process.communicate()
    assert out.decode() == f"{directory}\n", err.decode()
    return directory


def test_a_download_that_was_killed_twice_continues_and_ends_with_the_published_hashes(
    model: Path, full_hub: Hub
) -> None:
    found = lock.read(model)
    assert found is not None
    stated = {f"{repo}/{name}": s.size for repo, files in full_hub.repos.items() for name, s in files.items()}
    assert {source.key: source.size_bytes for source in found.sources} == stated
    assert lock.check(model, found, hashes=True) is None
    for source in found.sources:
        etag = full_hub.repos[source.key.rsplit("/", 1)[0]][source.key.rsplit("/", 1)[1]].etag
        assert source.sha256 == etag or len(etag) == 40
    continued = [r.range for r in full_hub.sent("GET", "/cdn/") if r.range]
    assert len(continued) == 2
    assert int(continued[1][6:-1]) > int(continued[0][6:-1]) >= 300_000_000
    assert os.listdir(model.parent) == [model.name]


def test_a_caption_fits_into_eight_gibibytes(folder: Path, model: Path) -> None:
    Image.radial_gradient("L").convert("RGB").save(folder / "photo.jpg")
    options = ("--offline", "--device", "cpu", "--max-new-tokens", "4")
    assert peak_bytes(start(folder, "caption", "photo.jpg", "what is here?", *options)) < LIMIT_BYTES


def test_a_picture_fits_into_eight_gibibytes(folder: Path, model: Path) -> None:
    options = ("--offline", "--device", "cpu", "-o", "bed.png")
    assert peak_bytes(start(folder, "generate", "a bed in a bedroom", *options)) < LIMIT_BYTES
    assert Image.open(folder / "bed.png").size == (256, 256)
