"""The Hugging Face Hub: asking for files and fetching them, by huggingface_hub (its tokens, proxies, endpoint).

A file is fetched into a `.partial` that the next try continues, checked against the hash that the Hub states, and
only then renamed. Every failure becomes one error with the next step. Knows no model.
"""

import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from omnimamba_cli import __version__
from omnimamba_cli.engine import remote_errors
from omnimamba_cli.errors import DownloadError

WAITS_S = (1.0, 2.0, 4.0, 8.0)  # before each further try after a failure that may pass: busy server, broken line
LONGEST_WAIT_S = 60.0  # a server may ask for this long; if it asks for more, the user is told and no one waits
CHUNK = 1 << 20  # bytes hashed at a time
MAIN = "main"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file as the Hub describes it."""

    repo: str
    file: str
    commit: str
    size_bytes: int
    etag: str  # sha256 of a large file, git's hash of a small one
    cached: Path | None  # where huggingface_hub's own cache has it

    @property
    def where(self) -> str:
        """repo/file, for messages."""
        return f"{self.repo}/{self.file}"


def offline() -> bool:
    """Whether the network is forbidden: --offline, or HF_HUB_OFFLINE."""
    return os.environ.get("HF_HUB_OFFLINE", "").strip().lower() in {"1", "true", "yes", "on"}


def describe(repo: str, file: str, revision: str | None = None) -> RemoteFile:
    """Ask the Hub for a file's commit, size and hash; fetches nothing.

    Raises DownloadError with what to do next.
    """
    where = f"{repo}/{file}"
    if offline():
        raise DownloadError(f"{where} is not here, and the network is not to be used", hint=remote_errors.OFFLINE_HINT)
    import huggingface_hub as hf  # here: importing it costs half a second of every command

    _quiet(bars=False)
    url = hf.hf_hub_url(repo, file, revision=revision or MAIN)
    found = _retrying(lambda: hf.get_hf_file_metadata(url), where)
    if found.commit_hash is None or found.etag is None or found.size is None:
        lacks = [n for n, v in (("commit", found.commit_hash), ("etag", found.etag), ("size", found.size)) if v is None]
        raise DownloadError(
            f"{where}: the answer names no {lacks[0]}, so this is no Hugging Face Hub",
            hint="check HF_ENDPOINT and the proxy settings",
        )
    cached = hf.try_to_load_from_cache(repo, file, revision=found.commit_hash)
    path = Path(cached) if isinstance(cached, str) and os.path.getsize(cached) == found.size else None
    return RemoteFile(
        repo=repo, file=file, commit=found.commit_hash, size_bytes=found.size, etag=found.etag, cached=path
    )


def partial_path(target: Path) -> Path:
    """Where an unfinished file lies."""
    return target.with_name(target.name + ".partial")


def fetch(remote: RemoteFile, target: Path, progress: Callable[[int], None]) -> str:
    """Get a file whole and checked under `target`, continuing where an earlier try stopped; returns its sha256.

    `progress` is called with the number of bytes that are here. Raises DownloadError: after a wrong hash the file is
    removed, after a broken connection what came is kept. OSErrors of the disk pass through.
    """
    partial = partial_path(target)
    if partial.is_file() and partial.stat().st_size > remote.size_bytes:
        partial.unlink()  # no beginning of this file
    with partial.open("ab"):
        pass
    _retrying(
        lambda: _get(remote, partial, progress), remote.where, came=lambda: partial.stat().st_size, by_library=True
    )
    size = partial.stat().st_size
    if size != remote.size_bytes:
        partial.unlink()
        raise DownloadError(
            f"{remote.where} came with {size:,} bytes, the Hub promised {remote.size_bytes:,}",
            hint="run the same command again",
        )
    digest = verified(partial, remote)
    if digest is None:
        partial.unlink()
        raise DownloadError(
            f"{remote.where} came with another hash than the Hub states ({remote.etag[:12]}...); it was thrown away",
            hint="run the same command again; if that does not help, something on the way alters files",
        )
    os.replace(partial, target)
    return digest


def _get(remote: RemoteFile, partial: Path, progress: Callable[[int], None]) -> None:
    """One try, from where the partial file ends."""
    import huggingface_hub as hf
    from huggingface_hub.file_download import http_get  # hf_hub_download forgets a killed try; this continues it

    url = hf.hf_hub_url(remote.repo, remote.file, revision=remote.commit)
    with partial.open("r+b") as file:
        start = file.seek(0, os.SEEK_END)
        progress(start)
        if start < remote.size_bytes:
            counted = _ReportingFile(file, progress)
            try:
                # the address on the Hub, not the one it forwards to, which expires
                http_get(
                    url,
                    counted,  # type: ignore[arg-type]  # a file in all that http_get uses
                    resume_size=start,
                    headers=_headers(),
                    expected_size=remote.size_bytes,
                    displayed_filename=remote.file,
                )
            except OSError as error:
                if file.seek(0, os.SEEK_END) > remote.size_bytes:  # older versions put the whole behind the half
                    file.truncate(0)
                    raise RangeIgnoredError from error
                raise
        file.flush()
        os.fsync(file.fileno())


def _headers() -> dict[str, str]:
    import huggingface_hub as hf

    token = hf.get_token()
    headers = {"user-agent": f"omnimamba/{__version__}"}
    return headers | ({"authorization": f"Bearer {token}"} if token else {})


class RangeIgnoredError(Exception):
    """A server sent a file from its beginning where its rest was asked for."""


class _ReportingFile:
    """A file that reports its size after each write; http_get's own progress differs between versions."""

    def __init__(self, file: BinaryIO, progress: Callable[[int], None]) -> None:
        self._file, self._progress = file, progress

    def write(self, data: bytes) -> int:
        """Write to the file, then report."""
        count = self._file.write(data)
        self._progress(self._file.tell())
        return count

    def __getattr__(self, name: str) -> Any:  # Any: whatever the file has
        return getattr(self._file, name)


def verified(path: Path, remote: RemoteFile) -> str | None:
    """The sha256 of a file if it has the hash that the Hub states, else None. An unknown kind of hash always fits."""
    sha = hashlib.sha256()
    git = hashlib.sha1(b"blob %d\0" % path.stat().st_size)  # how git, and so the Hub, names a small file
    small = re.fullmatch(r"[0-9a-f]{40}", remote.etag) is not None
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            sha.update(chunk)
            if small:
                git.update(chunk)
    large = re.fullmatch(r"[0-9a-f]{64}", remote.etag) is not None
    fits = git.hexdigest() == remote.etag if small else not large or sha.hexdigest() == remote.etag
    return sha.hexdigest() if fits else None


def snapshot(repo: str, revision: str | None, files: Sequence[str]) -> Path:
    """A repository's files of these names in huggingface_hub's cache; offline, what the cache has of it."""
    import huggingface_hub as hf

    _quiet(bars=os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS") != "1")
    where = f"{repo}@{revision}" if revision else repo
    try:
        return Path(
            hf.snapshot_download(repo, revision=revision, allow_patterns=list(files), local_files_only=offline())
        )
    except Exception as error:  # its network errors are of another library in almost every release
        raise remote_errors.explained(error, where) from error


def _retrying(call: Callable[[], T], where: str, *, came: Callable[[], int] = lambda: 0, by_library: bool = False) -> T:
    """The call's result, tried again after failures that may pass; tries start anew whenever bytes `came`.

    `by_library`: the call already retries silent connections itself. Raises DownloadError.
    """
    before, tries = came(), 0
    while True:
        try:
            return call()
        except Exception as error:
            if came() > before:
                before, tries = came(), 0
            wait = remote_errors.wait_s(error, by_library)
            if wait is None or wait > LONGEST_WAIT_S or tries >= len(WAITS_S):
                raise remote_errors.explained(error, where) from error
            time.sleep(max(WAITS_S[tries], wait))
            tries += 1


def _quiet(*, bars: bool) -> None:
    """Turn off the library's warnings, which we report ourselves, and without `bars` its progress bars."""
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]  # exported, lazily
    from huggingface_hub.utils import logging as library

    library.set_verbosity(logging.ERROR)
    if not bars:
        disable_progress_bars()
