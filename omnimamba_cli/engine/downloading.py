"""A published model, from the Hub or from local files, to a verified model directory.

`plan` says what it would take and writes nothing; `run` does it. Unfinished files stay in `.NAME.download` beside the
model for the next try. The model itself appears whole, with its lock file, or not at all.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from omnimamba_cli.config import Task
from omnimamba_cli.engine import checkpoint, convert_files, lock, remote, sources
from omnimamba_cli.engine.convert_files import ConvertEvent
from omnimamba_cli.engine.lock import Lock, SourceEntry
from omnimamba_cli.engine.published import PublishedFile, Release
from omnimamba_cli.engine.remote import RemoteFile
from omnimamba_cli.engine.storage import Storage
from omnimamba_cli.errors import CheckpointError, DownloadError, InputError, OmniMambaError, file_reason

SPARE_BYTES = 50_000_000  # a disk is not filled to the last byte
CONVERT_BYTES = 500_000_000  # memory of a conversion besides mapped files, measured at full size: 430 MB
SUFFIXES = {".pth", ".pt", ".bin", ".safetensors"}


@dataclass(frozen=True, kw_only=True)
class Item:
    """A file to get: from the Hub, from huggingface_hub's cache, or from a local folder."""

    file: PublishedFile
    size_bytes: int
    here_bytes: int  # how much of it is on this disk already
    remote: RemoteFile | None = None
    local: Path | None = None  # where it is already, whole


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a download will take, known before its first byte."""

    release: Release
    task: Task | None
    directory: Path
    dtype: Storage
    items: tuple[Item, ...]  # empty: the model is complete
    kept: tuple[SourceEntry, ...]  # sources of the parts that the directory already has and keeps
    replaces: bool  # whether what is there is made anew
    free_bytes: int

    @property
    def fetch_bytes(self) -> int:
        """Bytes that come over the network."""
        return sum(item.size_bytes - item.here_bytes for item in self.items)

    @property
    def disk_bytes(self) -> int:
        """Most disk space that is needed besides what is here: the rest of the files, and the model made of them."""
        return self.fetch_bytes + self.model_bytes

    @property
    def model_bytes(self) -> int:
        """About the size of the model: that of the files, doubled where 16-bit weights become 32-bit."""
        return sum(item.size_bytes for item in self.items) * (2 if self.dtype == "fp32" else 1)

    @property
    def memory_bytes(self) -> int:
        """Most memory that the conversion takes, pages of mapped files not counted."""
        return CONVERT_BYTES if self.items else 0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How much of a file, and of all files, is here."""

    key: str
    done_bytes: int
    size_bytes: int
    all_done_bytes: int
    all_size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A file is here, whole and checked."""

    key: str
    size_bytes: int
    sha256: str
    commit: str | None


DownloadEvent = Progress | Fetched | ConvertEvent
Report = Callable[[DownloadEvent], None]  # called, not yielded: huggingface_hub hands bytes over by calling


def staging(directory: Path) -> Path:
    """Where unfinished files of a model directory wait."""
    return directory.with_name(f".{directory.name}.download")


def originals(directory: Path) -> Path:
    """Where --keep puts the published files."""
    return directory.with_name(f"{directory.name}.original")


def plan(
    release: Release,
    directory: Path,
    *,
    task: Task | None = None,
    dtype: Storage = "keep",
    source: Path | None = None,
    force: bool = False,
    verify: bool = False,
) -> Plan:
    """What is lacking in `directory`, and what getting it takes.

    `source`: a folder with the published files, used instead of the network. A complete model asks no network.
    Raises CheckpointError for a damaged model, InputError for a directory that is something else, DownloadError.
    """
    directory = directory.absolute()
    checkpoint.check_replaceable(directory, overwrite=True)  # not after hours of downloading
    known = _known(release, directory, force=force, verify=verify)
    have = known.keys if known is not None and not force else set()
    # with force, what a damaged model had is fetched again too
    again = known.keys if known is not None and force else set()
    wanted = {file.key for file in release.needed(task)} | again
    lacking = [file for file in release.files if file.key in wanted - have]
    items = _local_items(lacking, source) if source is not None else [_remote_item(f, directory) for f in lacking]
    folder = next(p for p in (directory, *directory.parents) if p.is_dir())
    return Plan(
        release=release,
        task=task,
        directory=directory,
        dtype=dtype,
        items=tuple(items),
        kept=() if known is None or force else known.sources,
        replaces=force,
        free_bytes=shutil.disk_usage(folder).free,
    )


def _known(release: Release, directory: Path, *, force: bool, verify: bool) -> Lock | None:
    """The lock of what is in the directory, if there is any. Raises where it is damaged or another release."""
    if not checkpoint.is_model_directory(directory):
        return None
    found = lock.read(directory) if not force else _lock_or_none(directory)
    if force:
        return found
    if found is None:
        raise InputError(
            f"{directory} is a model directory that no download made",
            hint="use it as it is, choose another place (--dir), or replace it (--force)",
        )
    if found.release != release.name:
        raise InputError(f"{directory} holds {found.release}", hint="choose another place: --dir DIR")
    if wrong := lock.check(directory, found, hashes=verify):
        raise CheckpointError(
            f"{directory} is damaged: {wrong}",
            hint=f"fetch it again: omnimamba download {release.name} --force --dir {directory}",
        )
    return found


def _lock_or_none(directory: Path) -> Lock | None:
    with suppress(CheckpointError):
        return lock.read(directory)
    return None


def _remote_item(file: PublishedFile, directory: Path) -> Item:
    found = remote.describe(file.repo, file.file, file.revision)
    pinned = [("bytes", file.size_bytes, found.size_bytes)]
    if len(found.etag) == 64:  # a sha256
        pinned.append(("sha256", file.sha256, found.etag))  # type: ignore[arg-type]  # numbers or texts, compared alone
    for what, ours, theirs in pinned:
        if ours is not None and ours != theirs:
            raise DownloadError(
                f"{file.key} has changed: {what} {theirs} instead of {ours}",
                hint="pip install --upgrade omnimamba-cli, or give the files you trust: --from DIR",
            )
    here = found.size_bytes
    if found.cached is None:
        target = _target(directory, found)
        paths = [path for path in (target, remote.partial_path(target)) if path.is_file()]
        here = min(paths[0].stat().st_size, found.size_bytes) if paths else 0
    return Item(file=file, size_bytes=found.size_bytes, here_bytes=here, remote=found, local=found.cached)


def _target(directory: Path, found: RemoteFile) -> Path:
    """The place of a fetched file; its hash in the name keeps two versions apart."""
    return staging(directory) / f"{found.etag[:16]}-{found.file.replace('/', '-')}"


def _local_items(lacking: list[PublishedFile], folder: Path) -> list[Item]:
    """The lacking files in a local folder, told by their content, whatever their names."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder", hint="--from names a folder that holds the published files")
    paths = [p for p in sorted(folder.rglob("*")) if p.is_file() and (p.suffix in SUFFIXES or p.name.endswith(".json"))]
    found: list[sources.Source] = []
    refused: list[OmniMambaError] = []
    for path in paths:
        try:
            found.append(sources.open_source(path))
        except sources.UnknownFileError:
            continue
        except OmniMambaError as error:  # no matter, unless it is the one that is lacking
            refused.append(error)
    items = []
    for file in lacking:
        match = next((source for source in found if _is(file, source)), None)
        if match is None and refused:
            raise CheckpointError(
                f"{folder} holds no sound {file.file} of {file.repo}: {refused[0].message}", hint=refused[0].hint
            )
        if match is None:
            raise InputError(f"{folder} holds no {file.file} of {file.repo}", hint="put it there, under any name")
        size = match.path.stat().st_size
        items.append(Item(file=file, size_bytes=size, here_bytes=size, local=match.path))
    return items


def _is(file: PublishedFile, source: sources.Source) -> bool:
    """Whether a recognised local file is the published one."""
    pieces = {"published": "model", "vq": "vq", "tower": "vision", "tokenizer": "tokenizer", "base": None}
    piece = pieces[source.kind]
    return piece == file.piece and (piece != "vision" or source.tower_width == file.tower_width)


def run(plan: Plan, report: Report, *, keep: bool = False) -> Path:
    """Get what the plan lists, convert it, and give the model its name; returns the directory.

    Raises InputError where the disk is too small or may not be written, DownloadError, CheckpointError.
    """
    if not plan.items:
        return plan.directory
    if plan.disk_bytes + SPARE_BYTES > plan.free_bytes:
        raise InputError(
            f"{plan.directory} needs {plan.disk_bytes / 1e9:.1f} GB while it is made, "
            f"{plan.free_bytes / 1e9:.1f} GB are free there",
            hint="make room, choose another disk (--dir DIR), or one task alone (--task t2i)",
        )
    with _alone(plan.directory) as folder:
        now = _lock_or_none(plan.directory)
        if now is not None and not plan.replaces and {item.file.key for item in plan.items} <= now.keys:
            return plan.directory  # another process has made it since the plan
        for stale in folder.glob(".*.partial"):  # of a conversion that was killed
            shutil.rmtree(stale, ignore_errors=True)
        paths, entries = _fetch(plan, report)
        _convert(plan, folder, paths, entries, report)
        if keep:
            _keep(plan, paths)
    return plan.directory


@contextmanager
def _alone(directory: Path) -> Iterator[Path]:
    """The staging folder, this process's alone; removed at a good end, kept for the next try at a bad one."""
    from filelock import FileLock, Timeout  # what huggingface_hub and torch lock with

    folder = staging(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        guard = FileLock(folder / "lock", timeout=0)
        guard.acquire()
    except Timeout:
        raise InputError(
            f"another omnimamba download is making {directory}", hint="wait for it, or stop it and run this again"
        ) from None
    except OSError as error:
        raise InputError(
            f"{folder.parent} cannot be written: {file_reason(error)}", hint="choose another place: --dir DIR"
        ) from None
    try:
        yield folder
    finally:
        guard.release()
    shutil.rmtree(folder, ignore_errors=True)


def _fetch(plan: Plan, report: Report) -> tuple[list[Path], list[SourceEntry]]:
    """Get every file of the plan; returns their paths and where each came from."""
    paths, entries = [], []
    total, before = sum(item.size_bytes for item in plan.items), 0
    for item in plan.items:
        path, digest = item.local, ""

        def progress(done: int, item: Item = item, before: int = before) -> None:
            key, size = item.file.key, item.size_bytes
            report(
                Progress(key=key, done_bytes=done, size_bytes=size, all_done_bytes=before + done, all_size_bytes=total)
            )

        progress(item.here_bytes)
        if path is None and item.remote is not None:
            path = _target(plan.directory, item.remote)
            digest = lock.sha256(path) if path.is_file() else remote.fetch(item.remote, path, progress)
        assert path is not None  # an item is remote or local
        digest = digest or lock.sha256(path)
        _check_hash(item, path, digest)
        before += item.size_bytes
        progress(item.size_bytes)
        commit = item.remote.commit if item.remote else None
        report(Fetched(key=item.file.key, size_bytes=item.size_bytes, sha256=digest, commit=commit))
        paths.append(path)
        entries.append(SourceEntry(key=item.file.key, commit=commit, size_bytes=item.size_bytes, sha256=digest))
    return paths, entries


def _check_hash(item: Item, path: Path, digest: str) -> None:
    """Raise DownloadError for a file that lay here already and is not what the Hub or the table states."""
    stated = item.file.sha256
    if item.remote is not None and len(item.remote.etag) == 64:
        stated = item.remote.etag
    if stated is not None and digest != stated:
        if item.local is None:
            path.unlink()
        raise DownloadError(
            f"{path} has the sha256 {digest}, it should be {stated}",
            hint="remove it and run the same command again",
        )


def _convert(plan: Plan, folder: Path, paths: list[Path], entries: list[SourceEntry], report: Report) -> None:
    fresh = {entry.key for entry in entries}
    all_entries = [*entries, *(entry for entry in plan.kept if entry.key not in fresh)]
    events = convert_files.convert(
        paths,
        plan.directory,
        dtype=plan.dtype,
        preset=plan.release.preset,
        force=plan.replaces,
        within=folder,
        seal=lambda directory: lock.write(directory, plan.release.name, all_entries),
    )
    for event in events:
        report(event)


def _keep(plan: Plan, paths: list[Path]) -> None:
    """Move fetched files to where the user finds them. Files that were on this disk before stay where they are."""
    for item, path in zip(plan.items, paths, strict=True):
        if item.local is None:
            target = originals(plan.directory) / item.file.key
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
