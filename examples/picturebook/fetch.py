"""Gets the seven picture sets as pinned npm packages and unpacks them.

`npm pack` only downloads an archive: no code of the packages runs. An archive that already lies in
DATA/npm is used as it is, so a machine without a network needs the seven files and nothing else.
"""

import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path


class FetchError(Exception):
    """A picture set could not be fetched or unpacked; the text says what to do next."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """One picture set: an npm package at one version."""

    name: str  # npm name, with its scope
    version: str
    trained: bool = True  # False: kept for evaluation, never shown to a model in training

    @property
    def archive(self) -> str:
        """File name that `npm pack` gives the archive."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


# The order is the order of the style numbers: append, never reorder.
PACKAGES: dict[str, Package] = {
    "noto": Package(name="@iconify-json/noto", version="1.2.9"),
    "noto_v1": Package(name="@iconify-json/noto-v1", version="1.2.5"),
    "twemoji": Package(name="@discordapp/twemoji", version="16.0.1"),
    "fluent_flat": Package(name="@iconify-json/fluent-emoji-flat", version="1.2.6"),
    "fluent_3d": Package(name="@lobehub/fluent-emoji-3d", version="1.1.0"),
    "fluent_hc": Package(name="@iconify-json/fluent-emoji-high-contrast", version="1.2.6"),
    "streamline": Package(name="@iconify-json/streamline-emojis", version="1.2.4", trained=False),
}
SETS: tuple[str, ...] = tuple(PACKAGES)
FETCH_TIMEOUT_S = 300


def fetch(data: Path) -> dict[str, Path]:
    """Makes every set available under DATA/packages and returns the folder of each."""
    return {name: unpack(download(package, data), data / "packages" / name) for name, package in PACKAGES.items()}


def download(package: Package, data: Path) -> Path:
    """Path of the package's archive in DATA/npm, fetched with npm unless it is there already."""
    folder = data / "npm"
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / package.archive
    if archive.exists():
        return archive
    if shutil.which("npm") is None:
        raise FetchError(f"{package.archive} is not in {folder}, and npm is not installed: install Node.js, or copy it")
    partial = folder / f"partial-{package.archive}"
    partial.mkdir(exist_ok=True)
    command = ["npm", "pack", "--ignore-scripts", "--silent", f"{package.name}@{package.version}"]
    try:
        done = subprocess.run(
            command, cwd=partial, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False
        )
        if done.returncode != 0 or not (partial / package.archive).exists():
            raise FetchError(f"`{' '.join(command)}` failed ({done.returncode}): {done.stderr.strip()[-500:]}")
        (partial / package.archive).replace(archive)
    except subprocess.TimeoutExpired as error:
        raise FetchError(f"`{' '.join(command)}` took more than {FETCH_TIMEOUT_S} s: check the network") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return archive


def unpack(archive: Path, folder: Path) -> Path:
    """Unpacks an archive into `folder` and returns its `package` folder; does nothing when that was done."""
    if (folder / "package").exists():
        return folder / "package"
    partial = folder.with_name(f"partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with tarfile.open(archive) as tar:
            # "data" refuses links and paths that leave the folder.
            tar.extractall(partial, filter="data")
    except (tarfile.TarError, EOFError) as error:
        raise FetchError(f"{archive} is damaged ({error}): delete it and fetch again") from error
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
    return folder / "package"
