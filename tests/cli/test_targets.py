import errno
import os
from collections.abc import Callable, Iterable
from itertools import count, islice
from pathlib import Path

import pytest

from omnimamba_cli.cli import targets
from omnimamba_cli.cli.inputs import Wish
from omnimamba_cli.errors import InputError, OmniMambaError, UsageError

SEED = 7


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()


def made(planned: Iterable[targets.Target | InputError]) -> list[targets.Target]:
    """All of them, none of which is an error."""
    found = list(planned)
    assert not [t for t in found if isinstance(t, InputError)]
    return [t for t in found if isinstance(t, targets.Target)]


@pytest.mark.parametrize(
    ("prompts", "count", "output", "names"),
    [
        (["a red fox"], 1, "fox.png", ["fox.png"]),
        (["a red fox"], 3, "fox.png", ["fox-1.png", "fox-2.png", "fox-3.png"]),
        (["a red fox"], 1, None, ["a-red-fox.png"]),
        (["a red fox"], 2, "out/", ["out/a-red-fox-1.png", "out/a-red-fox-2.png"]),
        (["a red fox"], 1, "out", ["out/a-red-fox.png"]),
        (["a", "b"], 2, "{stem}-{seed}.webp", ["a-7.webp", "a-8.webp", "b-9.webp", "b-10.webp"]),
        (["a", "b"], 1, "{n}-{prompt-slug}.jpg", ["1-a.jpg", "2-b.jpg"]),
        (["a", "b"], 1, "fox.v2.png", ["fox.v2-1.png", "fox.v2-2.png"]),
        (["a"], 2, "fox", ["fox-1", "fox-2"]),
    ],
)
def test_names_are_filled_and_numbered(prompts: list[str], count: int, output: str | None, names: list[str]) -> None:
    planned = made(targets.plan(map(Wish, prompts), count, SEED, output, None))
    assert [str(t.path) for t in planned] == names
    assert [t.seed for t in planned] == list(range(SEED, SEED + len(names)))


@pytest.mark.parametrize(
    ("output", "choice", "expected"),
    [
        ("a.png", None, "png"),
        ("a.JPG", None, "jpeg"),
        ("a.webp", "webp", "webp"),
        ("a", "jpeg", "jpeg"),
        ("a.x", "png", "png"),
        ("-", "webp", "webp"),
        ("-", None, "png"),
        (None, "jpeg", "jpeg"),
    ],
)
def test_format_follows_suffix_or_option(
    output: str | None, choice: targets.FormatChoice | None, expected: str
) -> None:
    assert made(targets.plan([Wish("a")], 1, SEED, output, choice))[0].format == expected


@pytest.mark.parametrize(
    ("output", "count", "choice", "words"),
    [
        ("fox.doc", 1, None, "not written as .doc"),
        ("fox.png", 1, "jpeg", "contradicts"),
        ("{sed}.png", 1, None, "no field {sed}"),
        ("-", 2, None, "one picture"),
        ("", 1, None, "empty"),
    ],
)
def test_impossible_outputs_are_wrong_use(
    output: str, count: int, choice: targets.FormatChoice | None, words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        targets.plan([Wish("a")], count, SEED, output, choice)
    assert words in caught.value.message
    assert caught.value.hint


def test_a_prompt_can_have_a_seed_and_a_file_of_its_own() -> None:
    wishes = [Wish("a"), Wish("b", seed=99), Wish("c", output="own/{stem}.webp"), Wish("d", output="{sed}.png")]
    *good, bad = targets.plan(wishes, 2, SEED, "{n}.png", None)
    assert [(str(t.path), t.seed) for t in good if isinstance(t, targets.Target)] == [
        ("1.png", 7),
        ("2.png", 8),
        ("3.png", 99),
        ("4.png", 100),
        ("own/c-1.webp", 11),
        ("own/c-2.webp", 12),
    ]
    assert isinstance(bad, InputError)
    assert "{sed}" in bad.message


def test_names_are_planned_as_prompts_come() -> None:
    planned = targets.plan((Wish(f"{i}") for i in count()), 1, SEED, "{n}-{stem}.png", None)
    assert [str(t.path) for t in islice(planned, 2, 4) if isinstance(t, targets.Target)] == ["3-2.png", "4-3.png"]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("A Red, red fox!", "a-red-red-fox"),
        ("", "picture"),
        ("\U0001f98a", "picture"),
        ("狐 と 猫", "狐-と-猫"),
        ("../x", "x"),
    ],
)
def test_slug_is_a_plain_file_name(prompt: str, expected: str) -> None:
    assert targets.slug(prompt) == expected


def test_slug_of_a_long_prompt_fits_a_file_name() -> None:
    assert len(targets.slug("狐" * 10_000).encode()) <= 80


def exists(folder: Path) -> Path:
    (folder / "fox.png").write_bytes(b"old")
    return folder / "fox.png"


def folder_is_a_file(folder: Path) -> Path:
    (folder / "file").write_bytes(b"")
    return folder / "file" / "fox.png"


def is_folder(folder: Path) -> Path:
    (folder / "fox.png").mkdir()
    return folder / "fox.png"


@pytest.mark.parametrize(
    ("make", "words", "also_with_force"),
    [
        (exists, "exists", False),
        (folder_is_a_file, "is no folder", True),
        (is_folder, "is a folder", True),
        (lambda folder: folder / "nowhere" / "fox.png", "there is no folder", True),
        (lambda folder: folder / ("x" * 300 + ".png"), "longer than 255", True),
        (lambda folder: Path("/dev/null"), "no regular file", True),
        (lambda folder: Path("/proc/fox.png"), "cannot write", True),
    ],
)
def test_a_path_that_cannot_be_written_is_refused(
    tmp_path: Path, make: Callable[[Path], Path], words: str, also_with_force: bool
) -> None:
    path = make(tmp_path)
    with pytest.raises(InputError, match=words):
        targets.check(path, force=False)
    if also_with_force:
        with pytest.raises(InputError, match=words):
            targets.check(path, force=True)
    else:
        targets.check(path, force=True)


def test_check_leaves_nothing_behind(tmp_path: Path) -> None:
    targets.check(tmp_path / "out" / "fox.png", force=False)
    assert list((tmp_path / "out").iterdir()) == []


def test_written_file_is_whole_and_alone(tmp_path: Path) -> None:
    path = tmp_path / "out" / "fox.png"
    targets.write_whole(path, b"new", force=False)
    assert path.read_bytes() == b"new"
    assert [p.name for p in path.parent.iterdir()] == ["fox.png"]
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_came_meanwhile_is_kept_without_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    path = exists(tmp_path / "out")
    with pytest.raises(InputError, match="exists"):
        targets.write_whole(path, b"new", force=False)
    assert path.read_bytes() == b"old"
    targets.write_whole(path, b"new", force=True)
    assert path.read_bytes() == b"new"
    assert [p.name for p in path.parent.iterdir()] == ["fox.png"]


def no_links(*_: object, **__: object) -> None:
    raise OSError(errno.EPERM, "no links here")


def test_file_systems_without_links_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", no_links)
    targets.write_whole(tmp_path / "out" / "fox.png", b"new", force=False)
    assert [(p.name, p.read_bytes()) for p in (tmp_path / "out").iterdir()] == [("fox.png", b"new")]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("force", [True, False])
def test_nothing_is_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, force: bool
) -> None:
    def fail(_: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises((KeyboardInterrupt, OSError, OmniMambaError)):
        targets.write_whole(tmp_path / "out" / "fox.png", b"new", force=force)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_is_told_by_the_name_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"fox\.png") as caught:
        targets.write_whole(tmp_path / "out" / "fox.png", b"new", force=False)
    assert caught.value.errno == errno.ENOSPC
    assert list((tmp_path / "out").iterdir()) == []
