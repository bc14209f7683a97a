"""`omnimamba` without its seconds of imports: a process that has imported everything forks itself for each call.

For tests of scripts that start the program many times. `server` is used by them; this file run as a program is what
stands in the script's PATH: it hands its arguments, folder, variables and three streams to the process that waits.
"""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def server(folder: Path) -> Iterator[Path]:
    """Runs the process that waits; yields the command that calls it, for a PATH."""
    place = folder / "socket"
    command = folder / "omnimamba"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I "{__file__}" "{place}" "$@"\n')
    command.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(place))
        listening.listen()
        code = f"from tests.quick_start import wait; wait({listening.fileno()})"
        root = str(Path(__file__).parents[1])
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=root, stdin=subprocess.DEVNULL, pass_fds=[listening.fileno()]
        )
    try:
        yield command
    finally:
        process.kill()
        process.wait()


def wait(listening: int) -> None:
    """Fork for each call, for ever."""
    import omnimamba_cli as om
    from omnimamba_cli.cli import caption, generate
    from omnimamba_cli.cli.app import main
    from omnimamba_cli.model import vision

    assert all((om.load, caption, generate, vision)), "imported before the forks"
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    place = socket.socket(fileno=listening)
    while True:
        call, _ = place.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            call.sendall(bytes([_run(call, main)]))
            os._exit(0)
        call.close()


def _run(call: socket.socket, main: object) -> int:
    data, streams, _, _ = socket.recv_fds(call, 4, 3)
    with call.makefile("rb") as rest:
        arguments, folder, variables = json.loads(rest.read(struct.unpack("<I", data)[0]))
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    # Python's own streams remember what the old ones could do
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(n, mode, closefd=False) for n, mode in ((0, "r"), (1, "w"), (2, "w"))
    )
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    code = int(main(arguments))  # type: ignore[operator]  # app.main
    sys.stdout.flush()
    return code


def _call(place: str, arguments: list[str]) -> int:
    with socket.socket(socket.AF_UNIX) as there:
        there.connect(place)
        data = json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode()
        socket.send_fds(there, [struct.pack("<I", len(data))], [0, 1, 2])
        there.sendall(data)
        code = there.recv(1)
    return code[0] if code else 70  # it went without a word


if __name__ == "__main__":
    sys.exit(_call(sys.argv[1], sys.argv[2:]))
