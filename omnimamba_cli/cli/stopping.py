"""Ctrl-C and SIGTERM as exceptions that are never lost, whenever the signals come.

Python raises the exception wherever it is at that moment. During an import that does harm: libraries ignore errors of
imports, so the signal is lost, or C++ ends the process as a crash. So a signal waits until the import is over. Only the
import of torch takes too long for that; no command has begun to write anything by then, so the process simply ends.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from omnimamba_cli.errors import ExitCode

AGAIN_S = 0.02  # between two looks at whether the import is over
IMPORT = "<frozen importlib._bootstrap>"
Handler = Callable[[int, FrameType | None], object] | signal.Handlers
USUAL: dict[int, Handler] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}

_waiting: set[int] = set()  # signals that came during an import


@contextmanager
def stoppable() -> Iterator[None]:
    """In this block Ctrl-C is a KeyboardInterrupt and SIGTERM a SystemExit, so that temporary files are removed.

    A signal that is already handled or ignored otherwise (nohup, training, an outer block) is left alone.
    """
    ours = [number for number, usual in USUAL.items() if signal.getsignal(number) == usual]
    hook = sys.unraisablehook
    try:
        for number in ours:
            signal.signal(number, _stop)
    except ValueError:  # not in the main thread, where no signals arrive
        ours = []
    if ours:
        sys.unraisablehook = _once_more
    try:
        yield
    finally:
        if ours:
            sys.unraisablehook = hook
        for number in ours:
            if signal.getsignal(number) is _stop:
                signal.signal(number, USUAL[number])
                if number in _waiting:
                    _deliver(number)


def _stop(number: int, frame: FrameType | None) -> None:
    imported = _imports(frame)
    if number in _waiting or "torch" in imported:  # the second one: at once
        os._exit(128 + number)
    if imported and hasattr(signal, "setitimer"):
        _later(number)
        return
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(ExitCode.TERMINATED)


def _imports(frame: FrameType | None) -> set[str]:
    """The modules that are being imported; empty where no import is under way."""
    names, importing = set(), False
    while frame is not None:
        importing = importing or frame.f_code.co_filename == IMPORT
        if frame.f_code.co_name == "<module>":
            names.add(str(frame.f_globals.get("__name__")))
        frame = frame.f_back
    return names if importing else set()


def _later(number: int) -> None:
    _waiting.add(number)
    signal.signal(signal.SIGALRM, lambda *_: _deliver(number))
    signal.setitimer(signal.ITIMER_REAL, AGAIN_S)


def _deliver(number: int) -> None:
    _waiting.discard(number)
    signal.raise_signal(number)  # to who handles it by now


def _once_more(lost: "sys.UnraisableHookArgs") -> None:
    """Repeats a signal whose exception came where none can be raised, such as in __del__; reports others as usual."""
    number = {KeyboardInterrupt: signal.SIGINT, SystemExit: signal.SIGTERM}.get(lost.exc_type)
    if number is None or not hasattr(signal, "setitimer"):
        sys.__unraisablehook__(lost)
    else:
        _later(number)
