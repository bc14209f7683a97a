import json
import os
from pathlib import Path
from typing import Any

import pytest

from omnimamba_cli.cli.journal import Journal
from omnimamba_cli.errors import InputError


def key_of(record: Any) -> tuple[object, ...]:
    return (record["image"],)


def written(path: Path, *images: str) -> Path:
    with Journal(path, key_of) as journal:
        for image in images:
            journal.add({"image": image})
    return path


def images(path: Path) -> list[str]:
    return [json.loads(line)["image"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_new_file_holds_what_is_added_and_the_next_run_finds_it(tmp_path: Path) -> None:
    path = written(tmp_path / "log", "a", "b", "a")
    with Journal(path, key_of) as journal:
        assert (journal.count, journal.last) == (3, {"schema": 1, "image": "a"})
        # as often as it stands there
        assert [journal.holds((name,)) for name in ("a", "a", "a", "b", "b", "c")] == [
            True,
            True,
            False,
            True,
            False,
            False,
        ]
        journal.add({"image": "c"})
    assert images(path) == ["a", "b", "a", "c"]


@pytest.mark.parametrize("cut", range(1, 25))
def test_a_line_that_was_cut_anywhere_is_mended(tmp_path: Path, cut: int) -> None:
    path = written(tmp_path / "log", "a", "\u72d0")
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with Journal(path, key_of) as journal:
        if not journal.holds(("\u72d0",)):
            journal.add({"image": "\u72d0"})
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "text",
    ["photo", "photo\n", '{"other": 1}\n', "[1]\n", '{"schema":1,"image":"a"}\nnotes\n', "\x89PNG\r\n\x1a\n", "12"],
)
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(text, encoding="latin-1")
    before = path.read_bytes()
    with pytest.raises(InputError, match="nothing is appended"):
        Journal(path, key_of)
    assert path.read_bytes() == before


def test_undecodable_names_are_found_again(tmp_path: Path) -> None:
    path = written(tmp_path / "log", "fox\udcff.png")
    with Journal(path, key_of) as journal:
        assert journal.holds(("fox\udcff.png",))


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with Journal(tmp_path / "log", key_of), pytest.raises(InputError, match="another command"):
        Journal(tmp_path / "log", key_of)
    Journal(tmp_path / "log", key_of).close()


@pytest.mark.parametrize("name", ["nowhere/log", ".", "/dev/null"])
def test_what_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError):
        Journal(tmp_path / name, key_of)


class Full:
    """A disk that takes half of a line."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.calls = 0

    def write(self, data: memoryview) -> int:
        self.calls += 1
        if self.calls > 1:
            raise OSError(28, "No space left on device")
        return int(self.file.write(data[: len(data) // 2]))

    def fileno(self) -> int:
        return int(self.file.fileno())


def test_a_line_that_does_not_fit_on_the_disk_is_taken_off_again(tmp_path: Path) -> None:
    path = written(tmp_path / "log", "a")
    journal = Journal(path, key_of)
    file, journal._file = journal._file, Full(journal._file)  # type: ignore[assignment]
    with pytest.raises(OSError, match="No space left") as caught:
        journal.add({"image": "b"})
    assert caught.value.filename == str(path)
    file.close()
    assert images(path) == ["a"]


def test_a_hundred_thousand_lines_are_read_at_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f'{{"schema":1,"image":"{i}"}}\n' for i in range(100_000)))
    with Journal(path, key_of) as journal:
        assert journal.count == 100_000
        assert journal.holds(("99999",))
    assert os.path.getsize(path) > 2_000_000
