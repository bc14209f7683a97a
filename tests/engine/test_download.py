"""Downloading through the real huggingface_hub from a Hub on loopback: what arrives, what continues, what fails how."""

import email.utils
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from omnimamba_cli.engine import downloading, hub, lock, remote
from omnimamba_cli.engine.checkpoint import load_directory
from omnimamba_cli.engine.convert_files import PartWritten
from omnimamba_cli.engine.downloading import DownloadEvent, Fetched, Progress
from omnimamba_cli.errors import CheckpointError, DownloadError, InputError, OmniMambaError
from tests.cases.published import CONFIG, PLACES, RELEASE
from tests.loopback_hub import Fault, Hub


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "models" / "tiny"


def download(directory: Path, *, keep: bool = False, **options) -> list[DownloadEvent]:  # type: ignore[no-untyped-def]
    events: list[DownloadEvent] = []
    downloading.run(downloading.plan(RELEASE, directory, **options), events.append, keep=keep)
    return events


def hashes(directory: Path) -> dict[str, str]:
    return {path.name: lock.sha256(path) for path in sorted(directory.iterdir()) if path.suffix == ".safetensors"}


def refused(directory: Path, **options) -> OmniMambaError:  # type: ignore[no-untyped-def]
    """The error of a download that fails, and nothing that loads is there."""
    with pytest.raises(OmniMambaError) as caught:
        download(directory, **options)
    assert caught.value.hint
    assert "\n" not in caught.value.message
    assert not directory.exists()
    with pytest.raises(CheckpointError):
        load_directory(directory)
    return caught.value


# what arrives


def test_the_whole_model_arrives_and_loads(loopback: Hub, directory: Path, published_files: dict[str, Path]) -> None:
    events = download(directory)
    files = load_directory(directory)
    assert files.config == CONFIG
    assert files.tokenizer.encode("a red fox")
    assert os.listdir(directory.parent) == ["tiny"]
    fetched = {e.key: e for e in events if isinstance(e, Fetched)}
    for short, (repo, file) in PLACES.items():
        got = fetched[f"{repo}/{file}"]
        assert (got.sha256, got.commit) == (lock.sha256(published_files[short]), loopback.commits[repo])
    written = lock.read(directory)
    assert written is not None
    assert {s.key: s.sha256 for s in written.sources} == {key: e.sha256 for key, e in fetched.items()}


def test_progress_ends_at_the_size_told_before(loopback: Hub, directory: Path) -> None:
    plan = downloading.plan(RELEASE, directory)
    steps = [e for e in download(directory) if isinstance(e, Progress)]
    assert steps[-1].all_done_bytes == steps[-1].all_size_bytes == plan.fetch_bytes
    assert [s.all_done_bytes for s in steps] == sorted(s.all_done_bytes for s in steps)


def test_planning_fetches_and_writes_nothing(loopback: Hub, tmp_path: Path, directory: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    plan = downloading.plan(RELEASE, directory)
    assert plan.fetch_bytes == sum(repo[name].size for repo in loopback.repos.values() for name in repo)
    assert plan.disk_bytes >= 2 * plan.fetch_bytes
    assert {r.method for r in loopback.requests} == {"HEAD"}
    assert sorted(tmp_path.rglob("*")) == before


def test_a_finished_model_asks_no_network(loopback: Hub, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download(directory)
    forbid_sockets(monkeypatch)
    assert downloading.plan(RELEASE, directory, verify=True).items == ()
    assert download(directory) == []


def forbid_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_one_task_needs_its_own_files_and_the_other_can_follow(loopback: Hub, directory: Path) -> None:
    download(directory, task="t2i")
    assert {r.path.split("/")[-1] for r in loopback.requests} == {"OmniMamba.pth", "tokenizer.json", "vq.pt"}
    assert not (directory / "vision.safetensors").exists()
    first = hashes(directory)
    assert [item.file.key for item in downloading.plan(RELEASE, directory).items] == [
        "timm/dino/model.safetensors", "timm/siglip/model.safetensors",
    ]  # fmt: skip
    download(directory)
    assert load_directory(directory).towers is not None
    assert first.items() <= hashes(directory).items()
    assert downloading.plan(RELEASE, directory, verify=True).items == ()


def test_originals_are_kept_when_asked(loopback: Hub, directory: Path, published_files: dict[str, Path]) -> None:
    download(directory, keep=True)
    for short, (repo, file) in PLACES.items():
        kept = downloading.originals(directory) / repo / file
        assert kept.read_bytes() == published_files[short].read_bytes()


def test_a_file_in_the_hubs_own_cache_is_not_fetched_again(loopback: Hub, directory: Path) -> None:
    from huggingface_hub import hf_hub_download

    path = hf_hub_download("org/vq", "vq.pt")
    loopback.requests.clear()
    download(directory, task="t2i")
    assert not loopback.sent("GET", "vq.pt")
    assert Path(path).is_file()


def test_a_renamed_repository_is_followed_with_the_token(
    loopback: Hub, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "good")
    loopback.repos["org/new"], loopback.commits["org/new"] = loopback.repos["org/vq"], loopback.commits["org/vq"]
    loopback.renamed["org/vq"] = "org/new"
    loopback.gated.add("org/new")
    download(directory, task="t2i")
    # the token goes to the Hub, never to the host it forwards to
    assert {r.token for r in loopback.sent("HEAD", "vq.pt")} == {"Bearer good"}
    assert [r.token for r in loopback.sent("GET", "/cdn/") if "vq.pt" in r.path] == [None]


# what continues


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_broken_connection_continues_where_it_broke(
    loopback: Hub, directory: Path, monkeypatch: pytest.MonkeyPatch, reset: bool
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    loopback.faults["OmniMamba.pth"] = [Fault(cut_at=40_000, reset=reset), Fault(cut_at=80_000, reset=reset)]
    download(directory, task="t2i")
    starts = [int(r.range[6:-1]) if r.range else 0 for r in loopback.sent("GET", "/cdn/org/main")]
    assert starts[0] == 0
    assert len(starts) == 3
    if not reset:  # a reset may throw away what was sent
        assert starts[1] >= 36_000
        assert starts[2] >= 76_000
    assert load_directory(directory, parts=("model",)).model is not None


def test_a_silent_connection_continues(loopback: Hub, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    loopback.faults["vq.pt"] = [Fault(cut_at=50_000, stall_s=5)]
    download(directory, task="t2i")
    assert len(loopback.sent("GET", "/cdn/org/vq")) == 2


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_hub_is_asked_again(
    loopback: Hub, directory: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    loopback.faults["vq.pt"] = [Fault(status=status, head=True), Fault(status=status, headers={"Retry-After": "1"})]
    download(directory, task="t2i")
    assert load_directory(directory, parts=("vq",)).vq is not None


def test_a_server_without_ranges_starts_anew_and_ends_right(
    loopback: Hub, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    loopback.faults["vq.pt"] = [Fault(cut_at=50_000), Fault(ignore_range=True)]
    download(directory, task="t2i")
    assert load_directory(directory, parts=("vq",)).vq is not None


SCRIPT = """
import sys
from huggingface_hub import constants
from omnimamba_cli.cli.app import main
from omnimamba_cli.engine import published
from omnimamba_cli.presets import PRESETS
from tests.cases.published import CONFIG, RELEASE
constants.DOWNLOAD_CHUNK_SIZE = 4096
PRESETS["tiny"], published.RELEASES["tiny"] = CONFIG, RELEASE
sys.exit(main(["download", "tiny", *sys.argv[1:]]))
"""
ROOT = Path(__file__).resolve().parents[2]


def start(directory: Path) -> "subprocess.Popen[str]":
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT, "--dir", str(directory)]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_killed_twice_and_run_again_ends_with_the_same_hashes(loopback: Hub, tmp_path: Path, directory: Path) -> None:
    download(tmp_path / "plain" / "tiny")
    loopback.requests.clear()
    for name, at in (("OmniMamba.pth", 60_000), ("vq.pt", 90_000)):
        loopback.faults[name] = [Fault(cut_at=at, stall_s=60)]
        process = start(directory)
        deadline = time.monotonic() + 300
        while sum(p.stat().st_size for p in downloading.staging(directory).glob(f"*{name}.partial")) < at // 2:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not directory.exists()
    out, err = start(directory).communicate(timeout=300)
    assert out == f"{directory}\n", err
    assert hashes(directory) == hashes(tmp_path / "plain" / "tiny")
    ranges = [r.range for r in loopback.requests if r.method == "GET" and r.path.startswith("/cdn/") and r.range]
    assert len(ranges) == 2
    assert os.listdir(directory.parent) == ["tiny"]


def test_a_conversion_that_was_killed_leaves_no_model(loopback: Hub, directory: Path) -> None:
    plan = downloading.plan(RELEASE, directory)
    # what a kill leaves: a whole-looking directory under its working name
    left = downloading.staging(directory) / ".tiny.0000.partial"
    left.mkdir(parents=True)
    (left / "config.json").write_text("{}")
    downloading.run(plan, lambda _: None)
    assert os.listdir(directory.parent) == ["tiny"]


def test_a_conversion_that_is_stopped_is_done_again_without_fetching(loopback: Hub, directory: Path) -> None:
    def stop(event: DownloadEvent) -> None:
        if isinstance(event, PartWritten):
            raise KeyboardInterrupt

    plan = downloading.plan(RELEASE, directory)
    with pytest.raises(KeyboardInterrupt):
        downloading.run(plan, stop)
    assert not directory.exists()
    loopback.requests.clear()
    again = downloading.plan(RELEASE, directory)
    assert again.fetch_bytes == 0
    downloading.run(again, lambda _: None)
    assert {r.method for r in loopback.requests} == {"HEAD"}
    assert load_directory(directory).model is not None


# what fails, and how


def test_a_wrong_hash_leaves_nothing_and_the_next_try_is_right(loopback: Hub, directory: Path) -> None:
    loopback.faults["OmniMamba.pth"] = [Fault(flip=True)]
    error = refused(directory)
    assert isinstance(error, DownloadError)
    assert "another hash" in error.message
    assert not list(downloading.staging(directory).glob("*OmniMamba.pth*"))
    download(directory)
    assert downloading.plan(RELEASE, directory, verify=True).items == ()


def test_a_wrong_hash_of_a_small_file_is_seen_too(loopback: Hub, directory: Path) -> None:
    assert not loopback.repos["org/tokenizer"]["tokenizer.json"].large
    loopback.faults["tokenizer.json"] = [Fault(flip=True)]
    assert "another hash" in refused(directory).message


def test_a_truncated_file_is_refused(loopback: Hub, directory: Path) -> None:
    loopback.faults["vq.pt"] = [Fault(short=True)] * 9
    error = refused(directory)
    assert error.message == "org/vq/vq.pt could not be downloaded: it came with another length than promised"
    assert error.hint == "run the same command again: it continues"
    loopback.faults.clear()
    download(directory, task="t2i")
    assert load_directory(directory, parts=("vq",)).vq is not None


@pytest.mark.parametrize(
    ("status", "headers", "words", "hint"),
    [
        (401, {}, "asks for a login", "hf auth login"),
        (401, {"X-Error-Code": "GatedRepo"}, "is gated", "accept its terms"),
        (403, {}, "403", "whoami"),
        (404, {"X-Error-Code": "EntryNotFound"}, "no such file", "--from"),
        (407, {}, "the proxy asks for a login", "HTTPS_PROXY"),
        (418, {}, "418", "HF_ENDPOINT"),
        (429, {"Retry-After": "7"}, "too many requests", "wait 7 seconds"),
        (500, {}, "has trouble (500)", "later"),
        (503, {}, "has trouble (503)", "later"),
    ],
)
def test_every_refusal_is_one_line_with_the_next_step(
    loopback: Hub,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    headers: dict[str, str],
    words: str,
    hint: str,
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    loopback.faults["vq.pt"] = [Fault(status=status, headers=headers, head=True)] * 99  # some versions ask often
    error = refused(directory)
    assert isinstance(error, DownloadError)
    assert error.message.startswith("org/vq/vq.pt")
    assert words in error.message
    assert hint in str(error.hint)


@pytest.mark.parametrize("as_date", [False, True])
def test_a_long_wait_is_told_not_waited_for(
    loopback: Hub, directory: Path, monkeypatch: pytest.MonkeyPatch, as_date: bool
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    value = email.utils.formatdate(time.time() + 3600, usegmt=True) if as_date else "3600"
    loopback.faults["vq.pt"] = [Fault(status=429, headers={"Retry-After": value}, head=True)]
    error = refused(directory)
    assert re.match(r"wait (3600|359\d) seconds", str(error.hint))
    assert sum(slept) < 60


def test_a_refusal_in_the_middle_says_that_it_continues(
    loopback: Hub, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    loopback.faults["vq.pt"] = [Fault(cut_at=50_000), *[Fault(status=500)] * 9]
    assert "continues" in str(refused(directory, task="t2i").hint)
    loopback.faults.clear()
    loopback.requests.clear()
    download(directory, task="t2i")
    assert [r.path for r in loopback.requests if r.method == "GET" and "/cdn/" in r.path] == ["/cdn/org/vq/vq.pt"]


def test_an_unknown_repository_and_a_gated_one_are_told_apart(loopback: Hub, directory: Path) -> None:
    loopback.gated.add("org/main")
    assert "gated" in refused(directory).message
    del loopback.repos["org/main"]
    assert "no such repository" in refused(directory).message


def set_address(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    from huggingface_hub import constants, file_download

    for module in (constants, file_download):
        for name, tail in (
            ("ENDPOINT", ""),
            ("HUGGINGFACE_CO_URL_TEMPLATE", "/{repo_id}/resolve/{revision}/{filename}"),
        ):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, address + tail)


def test_no_network_is_said_at_once(loopback: Hub, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    set_address(monkeypatch, f"http://127.0.0.1:{port}")
    error = refused(directory)
    assert "cannot be reached" in error.message
    assert "--from DIR" in str(error.hint)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_refuses_is_named(
    loopback: Hub, directory: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setenv(f"{scheme}_proxy", loopback.url)  # the Hub answers 407 to those who take it for a proxy
    set_address(monkeypatch, f"{scheme}://hub.invalid")
    error = refused(directory)
    assert error.message.endswith("the proxy asks for a login (407)")
    assert "HTTPS_PROXY: http://USER:PASSWORD@HOST:PORT" in str(error.hint)


def test_an_address_without_https_is_named(loopback: Hub, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_address(monkeypatch, "hub.example.org")
    error = refused(directory)
    assert "HF_ENDPOINT is no address" in error.message


def test_something_that_is_no_hub_is_named(loopback: Hub, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loopback.commits["org/main"] = ""
    loopback.faults["OmniMamba.pth"] = [Fault(status=200, head=True)]
    assert "no Hugging Face Hub" in refused(directory).message


def test_a_disk_too_small_is_said_before_the_first_byte(
    loopback: Hub, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**6))  # type: ignore[attr-defined]
    error = refused(directory)
    assert isinstance(error, InputError)
    assert "are free there" in error.message
    assert {r.method for r in loopback.requests} == {"HEAD"}


def test_a_disk_that_fills_up_is_said_and_continues(
    loopback: Hub, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = remote._ReportingFile.write

    def write(self: remote._ReportingFile, data: bytes) -> int:
        if self._file.tell() > 50_000:
            raise OSError(28, "No space left on device")
        return real(self, data)

    monkeypatch.setattr(remote._ReportingFile, "write", write)
    error = refused(directory)
    assert isinstance(error, InputError)
    assert "disk is full" in error.message
    monkeypatch.setattr(remote._ReportingFile, "write", real)
    download(directory)
    assert any(r.range for r in loopback.requests)


@pytest.mark.skipif(os.name == "nt", reason="permissions are of another kind there")
def test_no_permission_is_said_before_the_first_byte(loopback: Hub, tmp_path: Path) -> None:
    place = tmp_path / "closed"
    if os.geteuid():
        place.mkdir(mode=0o500)
    else:
        place.write_text("a file: root may write into any folder")
    error = refused(place / "models" / "tiny")
    assert isinstance(error, InputError)
    assert "cannot be written" in error.message
    assert "--dir" in str(error.hint)
    assert {r.method for r in loopback.requests} == {"HEAD"}


def test_another_download_at_once_is_named(loopback: Hub, directory: Path) -> None:
    folder = downloading.staging(directory)
    folder.mkdir(parents=True)
    with FileLock(folder / "lock"):
        assert "another omnimamba download" in refused(directory).message
    download(directory)


def test_a_model_that_another_download_has_just_made_is_left_alone(loopback: Hub, directory: Path) -> None:
    plan = downloading.plan(RELEASE, directory)
    download(directory)
    loopback.requests.clear()
    assert downloading.run(plan, lambda _: None) == directory
    assert loopback.requests == []


def test_a_damaged_model_is_named_and_made_again_by_force(loopback: Hub, directory: Path) -> None:
    download(directory)
    good = hashes(directory)
    data = bytearray((directory / "vq.safetensors").read_bytes())
    data[-1] ^= 1
    (directory / "vq.safetensors").write_bytes(data)
    assert downloading.plan(RELEASE, directory).items == ()  # its size is right
    with pytest.raises(CheckpointError, match=r"damaged: vq\.safetensors has another hash") as caught:
        downloading.plan(RELEASE, directory, verify=True)
    assert "--force" in str(caught.value.hint)
    (directory / "vq.safetensors").write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match=r"damaged: vq\.safetensors has"):
        downloading.plan(RELEASE, directory)
    download(directory, force=True)
    assert hashes(directory) == good


def test_a_damaged_lock_file_is_named_with_the_next_command(loopback: Hub, directory: Path) -> None:
    download(directory)
    for text in ("", "[]", "[" * 100_000):
        (directory / "download.lock.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"download\.lock\.json is damaged") as caught:
            download(directory)
        assert caught.value.hint == f"omnimamba download --force --dir {directory}"


def test_what_is_no_download_is_not_touched(loopback: Hub, directory: Path) -> None:
    directory.mkdir(parents=True)
    (directory / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="no model directory"):
        downloading.plan(RELEASE, directory)
    (directory / "config.json").write_text("{}")
    with pytest.raises(InputError, match="no download made"):
        downloading.plan(RELEASE, directory)
    assert loopback.requests == []


def test_a_changed_file_is_refused_where_the_table_knows_it(
    loopback: Hub, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    for change in ({"size_bytes": 7}, {"sha256": "0" * 64}):
        files = (replace(RELEASE.files[0], **change), *RELEASE.files[1:])  # type: ignore[arg-type]
        with pytest.raises(DownloadError, match=r"OmniMamba\.pth has changed"):
            downloading.plan(replace(RELEASE, files=files), directory)


# files that want to do harm


class Attack:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_code_is_refused(loopback: Hub, tmp_path: Path, directory: Path) -> None:
    torch.save({"model": Attack(tmp_path / "owned"), "pad": torch.zeros(9000)}, tmp_path / "bad.pt")
    loopback.add("org/vq", {"vq.pt": tmp_path / "bad.pt"})
    error = refused(directory)
    assert isinstance(error, CheckpointError)
    assert "is refused" in error.message
    assert not (tmp_path / "owned").exists()


def test_a_header_that_lies_about_offsets_is_refused(
    loopback: Hub, tmp_path: Path, directory: Path, published_files: dict[str, Path]
) -> None:
    data = published_files["dino"].read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    name = next(n for n in header if n != "__metadata__" and header[n]["data_offsets"][0])
    header[name]["data_offsets"] = [0, header[name]["data_offsets"][1]]
    text = json.dumps(header).encode()
    (tmp_path / "lie").write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    loopback.add("timm/dino", {"model.safetensors": tmp_path / "lie"})
    assert isinstance(refused(directory), CheckpointError)


# local files


def test_local_files_make_the_same_model_without_a_socket(
    loopback: Hub, tmp_path: Path, directory: Path, published_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    download(tmp_path / "plain" / "tiny")
    folder = tmp_path / "usb"
    names = {
        "main.pth": "a.pth",
        "vq.pt": "b.pt",
        "tok.json": "c.json",
        "dino": "x/d.safetensors",
        "siglip": "e.safetensors",
    }
    for short, name in names.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(published_files[short], folder / name)
    (folder / "config.json").write_text("{}")
    forbid_sockets(monkeypatch)
    download(directory, source=folder)
    assert hashes(directory) == hashes(tmp_path / "plain" / "tiny")
    assert len(list(folder.rglob("*.*"))) == 6
    assert downloading.plan(RELEASE, directory, verify=True).items == ()


def test_other_files_in_a_local_folder_do_no_harm_and_a_damaged_one_is_named(
    loopback: Hub, tmp_path: Path, directory: Path, published_files: dict[str, Path]
) -> None:
    folder = tmp_path / "usb"
    folder.mkdir()
    for short in ("main.pth", "vq.pt", "tok.json"):
        shutil.copy(published_files[short], folder / short)
    (folder / "a.pt").write_bytes(b"")
    (folder / "b.safetensors").write_bytes(published_files["dino"].read_bytes()[:5000])
    torch.save({"optimizer": Attack(tmp_path / "owned")}, folder / "c.pt")
    (folder / "vq.pt").rename(folder / "away")
    error = refused(directory, source=folder, task="t2i")
    assert error.message.startswith(f"{folder} holds no sound vq.pt of org/vq: ")
    assert "a.pt is empty" in error.message
    (folder / "away").rename(folder / "vq.pt")
    download(directory, source=folder, task="t2i")
    assert load_directory(directory, parts=("vq",)).vq is not None
    assert not (tmp_path / "owned").exists()


def test_a_local_folder_that_lacks_a_file_says_which(
    loopback: Hub, tmp_path: Path, directory: Path, published_files: dict[str, Path]
) -> None:
    shutil.copy(published_files["main.pth"], tmp_path / "main.pth")
    assert "holds no tokenizer.json of org/tokenizer" in refused(directory, source=tmp_path).message
    assert "no such folder" in refused(directory, source=tmp_path / "nowhere").message


# the Hub's own format


def test_a_hub_repository_in_our_format_is_a_model(loopback: Hub, tiny_model: Path) -> None:
    loopback.add("me/mine", {path.name: path for path in tiny_model.iterdir()})
    path = hub.resolve("me/mine")
    assert load_directory(path).config.name == "tiny"
    assert hub.resolve(f"me/mine@{loopback.commits['me/mine']}") == path
    for name, words in (("me/other", "no such repository"), ("me/mine@v9", "no such revision")):
        with pytest.raises(DownloadError, match=words):
            hub.resolve(name)
    with pytest.raises(CheckpointError, match="holds no model directory"):
        hub.resolve("org/vq")


def test_a_page_instead_of_a_hub_is_told_as_that(loopback: Hub, directory: Path) -> None:
    loopback.portal = True
    with pytest.raises(DownloadError, match=r"me/mine.* the answer is none of a Hugging Face Hub") as caught:
        hub.resolve("me/mine")
    assert "HF_ENDPOINT" in str(caught.value.hint)
    assert isinstance(refused(directory), DownloadError)
    assert not directory.exists()


def test_offline_a_cached_repository_is_used_without_a_socket(
    loopback: Hub, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loopback.add("me/mine", {path.name: path for path in tiny_model.iterdir()})
    path = hub.resolve("me/mine")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    forbid_sockets(monkeypatch)
    assert hub.resolve("me/mine") == path
    for call in (lambda: hub.resolve("me/other"), lambda: remote.describe("org/vq", "vq.pt")):
        with pytest.raises(DownloadError, match="network is not to be used") as caught:
            call()
        assert "--offline" in str(caught.value.hint)
