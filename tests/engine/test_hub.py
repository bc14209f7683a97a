"""Where a model is found, and that a bare name stays off the network."""

import socket
from pathlib import Path

import pytest

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


def whole(path: Path, *parts: str) -> None:
    for name in ("config.json", "tokenizer.json", "model.safetensors", *parts):
        path.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("{}")


def test_the_published_model_is_the_default_of_what_it_can_do(home: Path) -> None:
    assert [hub.default_model(task) for task in ("mmu", "t2i", None)] == ["nano"] * 3
    place = home / "data" / "omnimamba" / "omnimamba-1.3b"
    whole(place, "vq.safetensors")
    assert [hub.default_model(task) for task in ("mmu", "t2i", None)] == ["nano", "omnimamba-1.3b", "nano"]
    whole(place, "vision.safetensors")
    assert [hub.default_model(task) for task in ("mmu", "t2i", None)] == ["omnimamba-1.3b"] * 3


def test_what_is_not_finished_is_not_installed(home: Path) -> None:
    whole(home / "data" / "omnimamba" / ".big.0a1b.partial")
    assert [name for name, _ in hub.installed()] == ["nano"]


def test_a_checkout_keeps_models_in_its_own_weights(home: Path) -> None:
    Path("weights").mkdir()
    assert hub.install_folder() == home / "data" / "omnimamba"
    Path("omnimamba_cli", "engine").mkdir(parents=True)
    assert hub.install_folder() == Path("weights")


def test_an_impossible_hub_id_is_a_download_error() -> None:
    with pytest.raises(DownloadError, match="a--b/c could not be downloaded"):
        hub.resolve("a--b/c")
