"""What a run remembers of its data files: enough to name the one that is another now."""

from dataclasses import replace
from pathlib import Path

import pytest

from omnimamba_cli.data.files import DataFile, difference

A, B = DataFile("a.jsonl", 600, 8), DataFile("b.tar", 500, 40)


def test_a_file_is_known_by_size_and_samples_and_a_folder_by_samples_alone(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("12345")
    assert DataFile.opened(tmp_path / "a.jsonl", 3) == DataFile(str(tmp_path / "a.jsonl"), 5, 3)
    assert DataFile.opened(tmp_path, 3) == DataFile(str(tmp_path), None, 3)
    assert DataFile.opened("https://host/a.tar", 3) == DataFile("https://host/a.tar", None, 3)


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ([A, B], None),
        ([replace(A, path="/other/disk/a.jsonl"), B], None),
        (
            [replace(A, samples=9), B],
            "a.jsonl has changed since the run was started: 8 samples in 600 bytes then, 9 samples in 600 bytes now",
        ),
        (
            [A, replace(B, bytes=499)],
            "b.tar has changed since the run was started: 40 samples in 500 bytes then, 40 samples in 499 bytes now",
        ),
        ([A], "b.tar (40 samples in 500 bytes) is missing: the run was started with it"),
        ([A, B, DataFile("more", None, 7)], "more (7 samples) is more than the run was started with"),
        (
            [B, A],
            "b.tar (40 samples in 500 bytes) is in the place of a.jsonl (8 samples in 600 bytes), which the run "
            "was started with",
        ),
    ],
)
def test_the_first_file_that_differs_is_named(now: list[DataFile], said: str | None) -> None:
    assert difference([A, B], now) == said
