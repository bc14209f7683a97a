"""What is said where memory runs out while training."""

from pathlib import Path

import pytest

from omnimamba_cli.engine.memory import memory_explained
from omnimamba_cli.errors import DeviceError


def test_what_no_batch_is_small_enough_for_is_said(tmp_path: Path) -> None:
    rows = {"--batch-mmu": 24, "--batch-t2i": 384}
    explained = memory_explained(rows, tmp_path, accumulate=2, recompute=True, held_bytes=20_940_000_000)
    with pytest.raises(DeviceError) as error, explained:
        raise MemoryError
    assert error.value.message == (
        "out of memory with --batch-mmu 24 --batch-t2i 384 --accumulate 2: no more is to be had; "
        "weights, gradients and optimizer take 20.9 GB whatever the batch"
    )
    assert error.value.hint == "--accumulate 4 (the same steps, slower), or smaller --batch-mmu, --batch-t2i"


def test_another_error_passes(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), memory_explained({"--batch": 4}, tmp_path, accumulate=1):
        raise RuntimeError("shapes differ")
