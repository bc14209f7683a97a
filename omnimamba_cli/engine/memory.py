"""Running out of memory while training, as an error that names the settings and what to type next."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from omnimamba_cli.engine.run_folder import has_snapshot
from omnimamba_cli.errors import DeviceError, memory_reason


@contextmanager
def memory_explained(
    rows: Mapping[str, int],
    output: Path,
    *,
    accumulate: int,
    recompute: bool | None = None,
    held_bytes: int | None = None,
) -> Iterator[None]:
    """Turns memory that ran out into a DeviceError; other errors pass.

    `rows` are those of a step, by the option that sets them. `recompute`: whether activations are computed again, None
    where there is no such choice. `held_bytes`: memory that is needed whatever the batch.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        reason = memory_reason(error)
        if reason is None:
            raise
        batch = " ".join(f"{option} {number}" for option, number in rows.items())
        message = f"out of memory with {batch} --accumulate {accumulate}: {reason}"
        if held_bytes is not None:
            message += f"; weights, gradients and optimizer take {held_bytes / 1e9:.1f} GB whatever the batch"
        raise DeviceError(message, hint=_next_step(rows, output, accumulate, recompute)) from error


def _next_step(rows: Mapping[str, int], output: Path, accumulate: int, recompute: bool | None) -> str:
    """What to type next: first options that leave the training steps the same, then smaller batches."""
    same = ["--checkpoint-activations"] if recompute is False else []
    if accumulate < max(rows.values()):
        same.append(f"--accumulate {2 * accumulate}")
    smaller = f"smaller {', '.join(rows)}"
    hint = f"{' or '.join(same)} (the same steps, slower), or {smaller}" if same else smaller
    return f"{hint}; with --resume it goes on from the last snapshot" if has_snapshot(output) else hint
