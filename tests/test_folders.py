"""A user's own files lie where the platform wants them."""

import pytest

from omnimamba_cli.folders import Kind, user_folder


@pytest.mark.parametrize(
    ("kind", "platform", "xdg", "place"),
    [
        ("data", "linux", "", "HOME/.local/share/omnimamba"),
        ("data", "linux", "/data", "/data/omnimamba"),
        ("data", "linux", "relative", "HOME/.local/share/omnimamba"),
        ("data", "darwin", "", "HOME/Library/Application Support/omnimamba"),
        ("data", "win32", "", "LOCAL/omnimamba"),
        ("state", "linux", "", "HOME/.local/state/omnimamba"),
        ("state", "darwin", "/state", "/state/omnimamba"),
        ("config", "linux", "", "HOME/.config/omnimamba"),
        ("config", "darwin", "", "HOME/.config/omnimamba"),
        ("config", "win32", "", "ROAMING/omnimamba"),
    ],
)
def test_the_users_folder_follows_the_platforms_rules(
    monkeypatch: pytest.MonkeyPatch, kind: Kind, platform: str, xdg: str, place: str
) -> None:
    monkeypatch.setattr("sys.platform", platform)
    folders = {"HOME": "/home/me", "LOCALAPPDATA": "/local", "APPDATA": "/roaming"}
    for name, value in {**folders, f"XDG_{kind.upper()}_HOME": xdg}.items():
        monkeypatch.setenv(name, value)
    for word, value in (("HOME", "/home/me"), ("LOCAL", "/local"), ("ROAMING", "/roaming")):
        place = place.replace(word, value)
    assert str(user_folder(kind)) == place


def test_without_windows_variables_the_home_folder_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setenv("HOME", "/home/me")
    for name in ("XDG_CONFIG_HOME", "APPDATA"):
        monkeypatch.delenv(name, raising=False)
    assert user_folder("config").as_posix() == "/home/me/AppData/Roaming/omnimamba"
