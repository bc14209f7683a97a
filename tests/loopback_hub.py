"""A Hub on loopback: real HTTP that speaks as much of the Hub's API as huggingface_hub asks, and can misbehave.

Large files are forwarded to another origin, as the Hub forwards to its CDN: `localhost` instead of `127.0.0.1`.
"""

import hashlib
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

PIECE = 1 << 20  # bytes sent at a time
LARGE = 10_000  # bytes from which a file is stored as a large one, forwarded and named by its sha256


@dataclass
class Fault:
    """What goes wrong, once."""

    status: int = 0  # answer this, with these headers, instead
    headers: dict[str, str] = field(default_factory=dict)
    cut_at: int | None = None  # bytes of the body after which the connection ends
    reset: bool = False  # ... by a reset instead of a close
    stall_s: float = 0.0  # silence at that place (or before the answer) first
    flip: bool = False  # one bit of the body is wrong
    short: bool = False  # the body ends early, and its length says so
    head: bool = False  # at a HEAD, not at a GET
    ignore_range: bool = False


@dataclass
class Stored:
    """One file of a repository."""

    path: Path
    size: int
    etag: str
    large: bool


@dataclass
class Request:
    """What was asked."""

    method: str
    path: str
    range: str | None
    token: str | None


class Hub:
    """Repositories, what goes wrong with them, and what was asked."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, Stored]] = {}
        self.commits: dict[str, str] = {}
        self.faults: dict[str, list[Fault]] = {}  # by file name; taken from the front
        self.gated: set[str] = set()
        self.renamed: dict[str, str] = {}
        self.requests: list[Request] = []
        self.portal = False  # somebody else answers everything with a page of theirs
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(self, repo: str, files: Mapping[str, Path]) -> None:
        """A repository of these files; adding again makes another commit."""
        stored = {}
        for name, path in files.items():
            data = path.read_bytes() if path.stat().st_size < 1 << 28 else None
            sha = hashlib.sha256(data).hexdigest() if data is not None else _sha256(path)
            size = path.stat().st_size
            git = hashlib.sha1(b"blob %d\0" % size + (data or b"")).hexdigest()
            stored[name] = Stored(path, size, sha if size >= LARGE else git, size >= LARGE)
        self.repos[repo] = stored
        self.commits[repo] = hashlib.sha1("".join(s.etag for s in stored.values()).encode()).hexdigest()

    def fault(self, name: str, head: bool) -> Fault:
        waiting = self.faults.get(name, [])
        for i, fault in enumerate(waiting):
            if fault.head == head:
                return waiting.pop(i)
        return Fault()

    def sent(self, method: str, name: str) -> list[Request]:
        """The requests for a file."""
        return [r for r in self.requests if r.method == method and name in r.path]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: object) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_CONNECT(self) -> None:
        """We were taken for a proxy of https."""
        self.say(407)

    def answer(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.hub.requests.append(
            Request(self.command, path, self.headers.get("Range"), self.headers.get("Authorization"))
        )
        parts = path.strip("/").split("/")
        if self.hub.portal:
            self.say(200, {"Content-Type": "text/html"}, b"<html>log in to this network</html>")
        elif url.scheme:  # we were taken for a proxy of http
            self.say(407, {"X-Proxy": "no"})
        elif parts[0] == "api":
            self.api(parts[2:])
        elif parts[0] == "cdn":
            repo, name = "/".join(parts[1:3]), "/".join(parts[3:])
            self.body(self.hub.repos[repo][name], name)
        elif "resolve" in parts:
            at = parts.index("resolve")
            self.file("/".join(parts[:at]), parts[at + 1], "/".join(parts[at + 2 :]))
        else:
            self.say(404)

    def say(self, status: int, headers: Mapping[str, str] | None = None, data: bytes = b"") -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refusal(self, repo: str, revision: str) -> tuple[int, dict[str, str]] | None:
        if repo not in self.hub.repos:
            return 401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
        if repo in self.hub.gated and self.headers.get("Authorization") != "Bearer good":
            return 401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model is restricted"}
        if revision not in ("main", self.hub.commits[repo]):
            return 404, {"X-Error-Code": "RevisionNotFound"}
        return None

    def api(self, parts: list[str]) -> None:
        repo = "/".join(parts[:2])
        revision = parts[3] if len(parts) > 3 else "main"
        if no := self.refusal(repo, revision):
            self.say(*no)
            return
        files = self.hub.repos[repo]
        if len(parts) > 2 and parts[2] == "tree":
            data: object = [
                {"type": "file", "path": name, "size": f.size, "oid": "0" * 40}
                | ({"lfs": {"oid": f.etag, "size": f.size, "pointerSize": 100}} if f.large else {})
                for name, f in files.items()
            ]
        else:
            data = {"id": repo, "sha": self.hub.commits[repo], "siblings": [{"rfilename": name} for name in files]}
        self.say(200, {"Content-Type": "application/json"}, json.dumps(data).encode())

    def file(self, repo: str, revision: str, name: str) -> None:
        if repo in self.hub.renamed:  # a relative redirect, to be followed with the token
            self.say(307, {"Location": f"/{self.hub.renamed[repo]}/resolve/{revision}/{name}"})
            return
        if no := self.refusal(repo, revision):
            self.say(*no)
            return
        commit = {"X-Repo-Commit": self.hub.commits[repo]}
        stored = self.hub.repos[repo].get(name)
        if stored is None:
            self.say(404, {**commit, "X-Error-Code": "EntryNotFound"})
            return
        if self.command == "HEAD":
            fault = self.hub.fault(name, head=True)
            time.sleep(fault.stall_s)
            if fault.status:
                self.say(fault.status, fault.headers)
                return
        if stored.large:
            linked = {"X-Linked-Etag": f'"{stored.etag}"', "X-Linked-Size": str(stored.size)}
            self.say(302, {**commit, **linked, "Location": f"http://localhost:{self.hub.port}/cdn/{repo}/{name}"})
            return
        self.body(stored, name, commit)

    def body(self, stored: Stored, name: str, headers: Mapping[str, str] | None = None) -> None:
        fault = self.hub.fault(name, head=False) if self.command == "GET" else Fault()
        if fault.status:
            self.say(fault.status, fault.headers)
            return
        asked = None if fault.ignore_range else self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if start >= stored.size:
            self.say(416, {"Content-Range": f"bytes */{stored.size}"})
            return
        end = stored.size - 100 if fault.short else stored.size
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
        for key, value in {**(headers or {}), "ETag": f'"{stored.etag}"', "Accept-Ranges": "bytes"}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if self.command == "GET":
            self.stream(stored.path, start, end, fault)

    def stream(self, path: Path, start: int, end: int, fault: Fault) -> None:
        stop = end if fault.cut_at is None else min(end, fault.cut_at)
        with path.open("rb") as file:
            file.seek(start)
            while (left := stop - file.tell()) > 0:
                piece = file.read(min(PIECE, left))
                if fault.flip:
                    piece, fault.flip = bytes([piece[0] ^ 1]) + piece[1:], False
                try:
                    self.wfile.write(piece)
                except OSError:  # the client went away
                    return
        if stop < end:
            self.wfile.flush()
            time.sleep(fault.stall_s)
            if fault.reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()


@contextmanager
def serve() -> Iterator[Hub]:
    """A running Hub on a free port."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that went away is no error."""

    server = Server(("127.0.0.1", 0), handler)
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
