"""Readers of data files: every format gives the same records, and says which sample is wrong."""

import json
from pathlib import Path

import pytest
from PIL import Image

from omnimamba_cli.data.records import captions_of, image_of, labels_of, read_records, root_of, turns_of
from omnimamba_cli.data.rejects import Rejects
from omnimamba_cli.errors import DataError, InputError

ROWS = [{"image": "a.png", "captions": ["a fox", "a red fox"]}, {"image": "b/c.jpg", "captions": ['an "owl", blue']}]


def records(path: Path, rejects: Rejects | None = None) -> list[tuple[str, list[str], str | None]]:
    found = read_records(path, Rejects() if rejects is None else rejects)
    return [(name, captions_of(record), image_of(record)) for name, record in found]


def test_every_format_gives_the_same_captions(tmp_path: Path) -> None:
    texts = {
        "a.json": json.dumps(ROWS),
        "a.jsonl": "\ufeff" + "".join(json.dumps(row) + "\n\n" for row in ROWS),
        "a.csv": 'image,caption\r\na.png,a fox\r\nb/c.jpg,"an ""owl"", blue"\r\na.png,a red fox\r\n',
        "a.tsv": 'text\tfile_name\na fox\ta.png\na red fox\ta.png\n"an ""owl"", blue"\tb/c.jpg\n',
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    folder = tmp_path / "photos"
    (folder / "b").mkdir(parents=True)
    for row in ROWS:
        picture = folder / str(row["image"])
        Image.new("RGB", (4, 4)).save(picture)
        picture.with_suffix(".txt").write_text("\n".join(row["captions"]) + "\n\n")
    expected = [(row["captions"], row["image"]) for row in ROWS]
    for path in [tmp_path / name for name in texts] + [folder]:
        assert [(captions, image) for _, captions, image in records(path)] == expected, path.name


def test_names_say_where_a_sample_stands(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    (tmp_path / "a.csv").write_text('image,caption\na.png,"two\nlines"\nb.png,one\n')
    assert [name for name, *_ in records(tmp_path / "a.json")] == ["a.json[1]", "a.json[2]"]
    assert [name for name, *_ in records(tmp_path / "a.csv")] == ["a.csv:3", "a.csv:4"]


def test_files_of_one_name_are_told_apart_and_a_folder_is_its_own_root(tmp_path: Path) -> None:
    paths = [tmp_path / "x" / "a.jsonl", tmp_path / "y" / "a.jsonl", tmp_path / "b.csv"]
    assert labels_of(paths) == [str(paths[0]), str(paths[1]), "b.csv"]
    assert root_of(paths[0], None) == tmp_path / "x"
    assert root_of(paths[0], tmp_path / "images") == tmp_path / "images"
    assert root_of(tmp_path, tmp_path / "images") == tmp_path


def test_a_line_that_is_nested_without_end_costs_one_sample(tmp_path: Path) -> None:
    nested = '{"a":' * 100_000
    (tmp_path / "a.jsonl").write_text(f"{nested}\n{json.dumps(ROWS[0])}\n")
    rejects = Rejects()
    assert [image for _, _, image in records(tmp_path / "a.jsonl", rejects)] == ["a.png"]
    assert rejects.reasons == {"a.jsonl:1": "no valid JSON (it is nested too deep)"}
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="item 1"):
        records(tmp_path / "a.json")


def test_rows_without_picture_or_caption_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,caption\na.png,\n,a fox\nb.png\nc.png,a cat\n")
    rejects = Rejects()
    assert [image for _, _, image in records(tmp_path / "a.csv", rejects)] == ["c.png"]
    assert list(rejects.reasons) == ["a.csv:2", "a.csv:3", "a.csv:4"]


def test_a_caption_that_was_cut_at_its_comma_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,caption\na.png,a dog, a cat\nb.png,a fox,,\n")
    rejects = Rejects()
    assert [captions for _, captions, _ in records(tmp_path / "a.csv", rejects)] == [["a fox"]]
    assert list(rejects.reasons) == ["a.csv:2"]
    assert "a caption with a comma needs quotation marks" in rejects.reasons["a.csv:2"]


def test_a_table_needs_its_columns_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a.png,a fox\n")
    with pytest.raises(DataError, match=r"a.csv: its first line \(a.png, a fox\) does not name") as error:
        records(tmp_path / "a.csv")
    assert error.value.hint == "the first line says what the columns are: image,caption"


def test_a_table_with_an_open_quotation_mark_says_where(tmp_path: Path) -> None:
    rows = [f"{i}.png,a house" for i in range(6)]
    rows[4] = '4.png,"a house'
    (tmp_path / "a.csv").write_text("\n".join(["image,caption", *rows]))
    with pytest.raises(DataError, match=r"a.csv is no valid table: the row that begins in line 6: unexpected") as error:
        records(tmp_path / "a.csv")
    assert "quotation mark" in (error.value.hint or "")
    (tmp_path / "b.csv").write_text('image,caption\na.png,"a house\n')
    with pytest.raises(DataError, match="the row that begins in line 2: unexpected"):
        records(tmp_path / "b.csv")


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "photos"])
def test_words_that_are_no_utf_8_cost_one_sample_and_are_never_replaced(tmp_path: Path, name: str) -> None:
    rows = [{"image": "a.png", "captions": ["caf\xe9"]}, {"image": "b.png", "captions": ["a \ufffd as it was written"]}]
    path = tmp_path / name
    if name == "photos":
        path.mkdir()
        for row in rows:
            Image.new("RGB", (4, 4)).save(path / str(row["image"]))
        (path / "a.txt").write_bytes(b"caf\xe9\n")
        (path / "b.txt").write_text(rows[1]["captions"][0], encoding="utf-8")
    else:
        texts = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
        if name == "a.csv":
            texts = [f"{row['image']},{row['captions'][0]}".encode() for row in rows]
        texts[0] = texts[0].replace("\xe9".encode(), b"\xe9")
        before, between, after = {"a.json": (b"[", b",", b"]"), "a.csv": (b"image,caption\n", b"\n", b"")}.get(
            name, (b"", b"\n", b"")
        )
        path.write_bytes(before + between.join(texts) + after)
    rejects = Rejects()
    assert [captions for _, captions, _ in records(path, rejects)] == [rows[1]["captions"]]
    assert ["byte 0xe9 is no UTF-8" in reason for reason in rejects.reasons.values()] == [True]


def test_utf_16_is_called_by_its_name(tmp_path: Path) -> None:
    for name, text in (("a.jsonl", json.dumps(ROWS[0])), ("a.csv", "image,caption\na.png,a fox\n")):
        (tmp_path / name).write_text(text, encoding="utf-16")
        with pytest.raises(DataError, match=f"{name} is UTF-16"):
            records(tmp_path / name)


def test_two_arrays_in_one_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(ROWS) + "\n" + json.dumps(ROWS) + "\n")
    with pytest.raises(DataError, match=r"a.json goes on after its array: \[\{"):
        records(tmp_path / "a.json")


def test_a_picture_without_text_is_named_and_an_empty_folder_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no pictures below it"):
        records(tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    rejects = Rejects()
    assert records(tmp_path, rejects) == []
    assert rejects.reasons == {f"{tmp_path.name}/a.png": "there is no a.txt with its captions beside it"}


def test_a_text_that_cannot_be_read_costs_one_sample_and_a_folder_is_no_picture(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    (tmp_path / "a.txt").mkdir()
    (tmp_path / "b.txt").write_text("a fox\n")
    (tmp_path / "c.png").mkdir()
    rejects = Rejects()
    assert [image for _, _, image in records(tmp_path, rejects)] == ["b.png"]
    assert rejects.reasons == {f"{tmp_path.name}/a.png": "its captions, a.txt: is a directory"}


def test_what_is_not_there_says_what_is_taken(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.json: no such file") as error:
        records(tmp_path / "none.json")
    assert "folder of pictures" in (error.value.hint or "")


def test_empty_answers_are_left_out() -> None:
    said = [("human", "<image>\nQ1"), ("gpt", " "), ("human", "Q2"), ("gpt", "A2")]
    record = {"conversations": [{"from": speaker, "value": text} for speaker, text in said]}
    assert turns_of(record) == [("Q2", "A2")]
    with pytest.raises(ValueError, match="answers are empty"):
        turns_of({"conversations": record["conversations"][:2]})
