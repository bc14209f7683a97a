"""What a terminal can show: from its environment, and from its own answer where it can be asked."""

import os
import select
import time
from collections.abc import Mapping
from typing import TextIO

from omnimamba_cli.cli.preview import Way

# kitty's: do you know this (a black pixel, not shown)? Then DEC's: what are you? All terminals answer the second.
QUERY = b"\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\\x1b[c"
WAIT_S = 1.0  # a distant terminal is slow, and an answer that comes later would be taken for typing
SILENT = ("dumb", "linux", "")  # TERM of those that are not asked


def best_way(stream: TextIO, environment: Mapping[str, str], *, colour: bool) -> Way:
    """How to show a picture on a stream that is a terminal."""
    term = environment.get("TERM", "")
    if term == "xterm-kitty" and "TMUX" not in environment:
        return "kitty"
    reply = b"" if term in SILENT else asked(stream.fileno())
    if b"_Gi=31;OK" in reply:
        return "kitty"
    if b"4" in _attributes(reply):
        return "sixel"
    if not colour or term in SILENT:
        return "letters"
    return "truecolor" if environment.get("COLORTERM") in ("truecolor", "24bit") else "256"


def _attributes(reply: bytes) -> list[bytes]:
    r"""The numbers of `ESC [ ? 62 ; 4 ; 22 c`."""
    _, found, rest = reply.partition(b"\x1b[?")
    return rest.partition(b"c")[0].split(b";") if found else []


def asked(stream: int, query: bytes = QUERY, wait_s: float = WAIT_S) -> bytes:
    """A terminal's answer to a query that ends with "what are you?"; empty if it does not answer or cannot be asked.

    What was typed before the answer came is lost with it.
    """
    try:
        import termios
        import tty
    except ImportError:  # Windows
        return b""
    try:
        terminal = os.open(os.ttyname(stream), os.O_RDWR | os.O_NOCTTY)  # the stream itself may be for writing alone
    except OSError:
        return b""
    try:
        if not _in_foreground(terminal):  # there, changing how it reads would stop this program
            return b""
        before = termios.tcgetattr(terminal)
        try:
            tty.setcbreak(terminal, termios.TCSADRAIN)
            os.write(terminal, query)
            return _reply(terminal, wait_s)
        finally:
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)
    except (OSError, termios.error):
        return b""
    finally:
        os.close(terminal)


def _in_foreground(terminal: int) -> bool:
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:  # not the terminal that this program was started from: it has no say here
        return True


def _reply(terminal: int, wait_s: float) -> bytes:
    reply, end = b"", time.monotonic() + wait_s
    while (left := end - time.monotonic()) > 0 and not (b"\x1b[?" in reply and reply.endswith(b"c")):
        if not select.select([terminal], [], [], left)[0]:
            break
        reply += os.read(terminal, 1024)
    return reply
