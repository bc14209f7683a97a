import ast
import inspect
from pathlib import Path

import pytest

from omnimamba_cli import errors
from omnimamba_cli.errors import ExitCode, OmniMambaError

PACKAGE = Path(errors.__file__).parent


def test_exit_codes_are_the_documented_ones() -> None:
    assert {code.name: code.value for code in ExitCode} == {
        "DONE": 0,
        "BUG": 1,
        "USAGE": 2,
        "INPUT": 3,
        "MODEL": 4,
        "DEVICE": 5,
        "SOME_FAILED": 6,
        "INTERRUPTED": 130,
        "CLOSED_PIPE": 141,
        "TERMINATED": 143,
    }


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("UsageError", 2),
        ("ConfigError", 2),
        ("InputError", 3),
        ("DataError", 3),
        ("CheckpointError", 4),
        ("DownloadError", 4),
        ("DeviceError", 5),
    ],
)
def test_each_error_has_its_exit_code(name: str, code: int) -> None:
    assert getattr(errors, name).exit_code == code


def test_every_error_is_listed_here() -> None:
    classes = {n for n, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, OmniMambaError)}
    assert classes == {
        "OmniMambaError",
        "UsageError",
        "ConfigError",
        "InputError",
        "DataError",
        "CheckpointError",
        "DownloadError",
        "DeviceError",
    }


def test_an_error_keeps_message_and_hint() -> None:
    error = errors.InputError("fox.png: no such file", hint="look again")
    assert (str(error), error.message, error.hint) == ("fox.png: no such file", "fox.png: no such file", "look again")


def test_errors_are_raised_as_sentences_without_a_full_stop() -> None:
    offenders = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call) or not node.exc.args:
                continue
            name = getattr(node.exc.func, "id", "")
            first = node.exc.args[0]
            last = first.values[-1] if isinstance(first, ast.JoinedStr) else first
            if name in dir(errors) and isinstance(last, ast.Constant) and str(last.value).rstrip().endswith("."):
                offenders.append(f"{path.name}:{node.lineno}")
    assert offenders == []


def wrapped(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


class OutOfMemoryError(RuntimeError):
    """Named as torch's own."""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            OutOfMemoryError("CUDA out of memory. Of 79 GiB 1 GiB is free. Process 7\nmore"),
            "CUDA out of memory. Of 79 GiB 1 GiB is free",
        ),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] err. DefaultCPUAllocator: can't allocate memory: 9 bytes."
            ),
            "DefaultCPUAllocator: can't allocate memory: 9 bytes",
        ),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling x"),
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling x",
        ),
        (wrapped(RuntimeError("capture failed"), OutOfMemoryError("CUDA out of memory")), "CUDA out of memory"),
        (MemoryError(), "no more is to be had"),
        (RuntimeError("shapes differ"), None),
        (ValueError("out of memory"), None),
    ],
)
def test_memory_that_ran_out_is_known_by_its_words(error: BaseException, reason: str | None) -> None:
    assert errors.memory_reason(error) == reason
