"""Where a model is found, and that a bare name stays off the network."""

import socket
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from omnimamba_cli.engine import hub
from omnimamba_cli.errors import CheckpointError, DownloadError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder and a home without models, a bundled nano, and no network."""

    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(hub, "bundled_folders", lambda: [tmp_path / "bundled"])
    model(tmp_path / "bundled" / "nano")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def model(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    return path


def test_nano_is_found_anywhere(home: Path) -> None:
    assert hub.resolve("nano") == home / "bundled" / "nano"


def test_an_empty_folder_called_nano_does_not_hide_it(home: Path) -> None:
    Path("nano").mkdir()
    assert hub.resolve("nano") == home / "bundled" / "nano"


def test_a_directory_comes_before_a_name(home: Path) -> None:
    mine = model(home / "work" / "nano")
    assert hub.resolve("nano").resolve() == mine
    assert hub.resolve(str(mine)) == mine
    assert hub.resolve("./nano").resolve() == mine


def test_a_users_models_are_found_by_name_and_the_nearer_one_wins(home: Path) -> None:
    far = model(home / "data" / "omnimamba" / "big")
    assert hub.resolve("big") == far
    near = model(home / "work" / "weights" / "big")
    assert hub.resolve("big").resolve() == near
    assert [name for name, _ in hub.installed()] == ["big", "nano"]


@pytest.mark.parametrize(("name", "hint"), [("nanno", "did you mean 'nano'"), ("zzz", "installed: nano"), ("", "nano")])
def test_an_unknown_name_names_what_is_near(name: str, hint: str) -> None:
    with pytest.raises(CheckpointError, match="there is no model") as caught:
        hub.resolve(name)
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize("name", ["./nowhere", "weights/nowhere", "/nowhere/at/all", "../x"])
def test_a_path_that_is_not_there_is_no_hub_id(name: str) -> None:
    Path("weights").mkdir()
    with pytest.raises(CheckpointError, match="no model directory"):
        hub.resolve(name)


def test_a_file_and_a_foreign_directory_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_text("")
    with pytest.raises(CheckpointError, match="is a file") as caught:
        hub.resolve(str(tmp_path / "x.pth"))
    assert "omnimamba convert" in str(caught.value.hint)
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        hub.resolve(str(tmp_path))


def test_a_hub_id_is_downloaded_at_its_revision(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot, asked = model(home / "cache"), []

    def download(repo: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repo, revision))
        assert "model.safetensors" in allow_patterns
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert hub.resolve("org/some.model") == snapshot
    assert hub.resolve("org/some.model@v1/x") == snapshot
    assert asked == [("org/some.model", None), ("org/some.model", "v1/x")]


def test_a_repository_of_another_kind_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(home / "work"))
    with pytest.raises(CheckpointError, match="org/other holds no model directory") as caught:
        hub.resolve("org/other")
    assert "omnimamba convert" in str(caught.value.hint)


@pytest.mark.parametrize(
    "error", [LocalEntryNotFoundError("no route\nand more"), OSError("no route"), RuntimeError("no route")]
)
def test_a_failed_download_is_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(DownloadError) as caught:
        hub.resolve("org/model")
    assert caught.value.message == "org/model could not be downloaded: no route"


def test_an_impossible_hub_id_is_a_download_error() -> None:
    with pytest.raises(DownloadError, match="a--b/c could not be downloaded"):
        hub.resolve("a--b/c")
