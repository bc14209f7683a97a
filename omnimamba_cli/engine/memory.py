"""Memory that ran out while training, as an error that says what with and what to type next."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from omnimamba_cli.engine.run_folder import has_snapshot
from omnimamba_cli.errors import DeviceError, memory_reason


@contextmanager
def memory_explained(
    rows: Mapping[str, int], output: Path, *, accumulate: int, recompute: bool | None = None
) -> Iterator[None]:
    """Turns memory that ran out into a DeviceError; other errors pass.

    `rows` are a step's, by the option that sets them; `recompute` says whether activations are computed again, None
    where there is no such choice.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        reason = memory_reason(error)
        if reason is None:
            raise
        batch = " ".join(f"{option} {number}" for option, number in rows.items())
        same = ["--checkpoint-activations"] if recompute is False else []
        if accumulate < max(rows.values()):
            same.append(f"--accumulate {2 * accumulate}")
        smaller = f"smaller {', '.join(rows)}"
        hint = f"{' or '.join(same)} (the same steps, slower), or {smaller}" if same else smaller
        if has_snapshot(output):
            hint += "; with --resume it goes on from the last snapshot"
        raise DeviceError(f"out of memory with {batch} --accumulate {accumulate}: {reason}", hint=hint) from error
