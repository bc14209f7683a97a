"""Every error a user can meet, with its exit code and a hint: what to type next. Also reads errors of other libraries.

A leaf: imports nothing of the package.
"""

import difflib
from collections.abc import Iterable
from enum import IntEnum

MEMORY_WORDS = ("out of memory", "allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")  # of RuntimeErrors without a class


class ExitCode(IntEnum):
    """Exit codes of the command line; listed in `omnimamba --help` and README."""

    DONE = 0
    BUG = 1
    USAGE = 2
    INPUT = 3
    MODEL = 4
    DEVICE = 5
    SOME_FAILED = 6
    INTERRUPTED = 130
    CLOSED_PIPE = 141
    TERMINATED = 143


class OmniMambaError(Exception):
    """What happened (with the value) and why; `hint` is what to do next, often a command."""

    exit_code = ExitCode.BUG

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(OmniMambaError):
    """Options that contradict each other, or a value out of its range."""

    exit_code = ExitCode.USAGE


class ConfigError(UsageError):
    """A configuration with an unknown key or an impossible value."""


class InputError(OmniMambaError):
    """A file, picture or prompt that cannot be read or written."""

    exit_code = ExitCode.INPUT


class DataError(InputError):
    """Training or evaluation data that is malformed; names the sample."""


class CheckpointError(OmniMambaError):
    """A model that is missing, incomplete or of another shape than its configuration."""

    exit_code = ExitCode.MODEL


class DownloadError(OmniMambaError):
    """A file that could not be fetched from the Hub."""

    exit_code = ExitCode.MODEL


class DeviceError(OmniMambaError):
    """A device, dtype or kernel that is not to be had here, or memory that ran out."""

    exit_code = ExitCode.DEVICE


def nearest(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """A hint for a word that is none of the known ones: the one most like it, if any is."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f"did you mean {near[0]!r}?" if near else None


def file_reason(error: OSError) -> str:
    """What the system says of a file, within a sentence: no such file or directory."""
    return (error.strerror or str(error)).lower()


def memory_reason(error: BaseException) -> str | None:
    """One line about memory that ran out, found in the error or its causes; None for an error of another kind.

    Recognised by class name and wording: importing torch for its classes takes a second, and libraries raise their own.
    """
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen)
        named = isinstance(seen, MemoryError) or type(seen).__name__ == "OutOfMemoryError"
        if named or (isinstance(seen, RuntimeError) and any(words in text for words in MEMORY_WORDS)):
            first = text.split("\n")[0]
            # before its name the allocator of a CPU tells where in its source it stands
            first = first[max(first.find("DefaultCPUAllocator"), 0) :]
            # after what is free CUDA goes on about processes and settings of its allocator
            before, free, _ = first.partition(" is free")
            return f"{before}{free}".rstrip(".") or "no more is to be had"
        seen = seen.__cause__ or seen.__context__
    return None


def kernel_reason(error: BaseException) -> str | None:
    """One line about a kernel that this GPU or this Triton does not take; None for an error of another kind."""
    if not type(error).__module__.startswith("triton."):
        return None
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" ^")]
    return lines[-1] if lines else type(error).__name__
