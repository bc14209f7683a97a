"""Where a user's own files lie, by the rules of the platform. A leaf: imports nothing of the package."""

import os
import sys
from pathlib import Path
from typing import Literal

Kind = Literal["config", "data", "state"]
# kind -> XDG's variable and its default below the home folder, Windows' variable and its default
RULES: dict[Kind, tuple[str, str, str, str]] = {
    "config": ("XDG_CONFIG_HOME", ".config", "APPDATA", "AppData/Roaming"),
    "data": ("XDG_DATA_HOME", ".local/share", "LOCALAPPDATA", "AppData/Local"),
    "state": ("XDG_STATE_HOME", ".local/state", "LOCALAPPDATA", "AppData/Local"),
}


def user_folder(kind: Kind) -> Path:
    """The program's folder for files of a kind; it may not exist yet."""
    variable, xdg, windows, roaming = RULES[kind]
    named = os.environ.get(variable, "")
    if os.path.isabs(named):  # XDG says to ignore relative paths
        return Path(named) / "omnimamba"
    if sys.platform == "win32":
        return Path(os.environ.get(windows) or Path.home() / roaming) / "omnimamba"
    if sys.platform == "darwin" and kind != "config":  # config files go to ~/.config, as of other command lines
        return Path.home() / "Library" / "Application Support" / "omnimamba"
    return Path.home() / xdg / "omnimamba"
