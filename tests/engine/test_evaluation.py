"""Scoring, contact sheets, and whole evaluations of a small random model on a set that the test writes."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image, ImageFont

from omnimamba_cli.cli.app import main
from omnimamba_cli.engine import evaluation
from omnimamba_cli.engine.evaluation import EvaluationResult, EvaluationStep, evaluate_picturebook
from omnimamba_cli.engine.results import Failure
from omnimamba_cli.engine.scoring import Score, Tally, is_right, normalised
from omnimamba_cli.engine.session import Session, load
from omnimamba_cli.engine.sheets import GAP, grid_sheet, wrapped
from omnimamba_cli.errors import CheckpointError, DataError, InputError

SPLITS = ("unseen_scenes", "unseen_pairs", "unseen_drawing", "unseen_style")
COLOURS = ("red", "green", "blue", "yellow")


# scoring


@pytest.mark.parametrize(
    ("answer", "accepted"),
    [
        ("A Fox.", "a fox"),
        ("the fox", "a fox"),
        ("fox", "an fox"),
        ("  two  foxes ", "2 foxes"),
        ("3", "three"),
        ("a yo-yo", "a yo yo"),
        ("a woman's hat", "a womans hat"),
        ("a woman\u2019s hat", "a woman's hat"),
        ("light grey", "light gray"),
        ("what colour", "What color?"),
        ("a pi\u00f1ata", "a pin\u0303ata"),
        ("\uff26ox", "fox"),
        ("A!", "a!"),
        ("\u0915\u093f", "\u0915\u093f"),
    ],
)
def test_what_does_not_matter_is_forgiven(answer: str, accepted: str) -> None:
    assert is_right(answer, ["nothing", accepted])


@pytest.mark.parametrize(
    ("answer", "accepted"),
    [
        ("a fox", "a box"),
        ("a fox and a dog", "a fox"),
        ("a fox", "a fox and a dog"),
        ("a fox and a dog", "a dog and a fox"),
        ("foxes", "a fox"),
        ("yes, a fox", "yes"),
        ("", "a fox"),
        (" ", "the"),
        ("the", "a"),
        ("anthem", "them"),
        ("one", "11"),
        ("blue", "light blue"),
    ],
)
def test_what_matters_is_not(answer: str, accepted: str) -> None:
    assert not is_right(answer, [accepted])


def test_normalising_again_changes_nothing() -> None:
    text = "The Two grey Yo-Yos, and THE fox's X-ray!"
    assert normalised(text) == "2 gray yo yos and foxs x ray"
    assert normalised(normalised(text)) == normalised(text)


def test_every_concept_of_the_picture_book_keeps_a_name_of_its_own() -> None:
    table = Path(__file__).parents[2] / "examples" / "picturebook" / "concepts.tsv"
    lines = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    captions = {line[2] for line in lines[1:]}
    assert len(captions) > 1000
    assert len({normalised(caption) for caption in captions}) == len(captions)


def test_a_tally_adds_up_by_group_and_by_item() -> None:
    tally = Tally()
    for group, item, right in [("a", "x", True), ("a", "y", False), ("b", "x", False), ("a", "x", True)]:
        tally.add(group, item, right)
    assert tally.total() == Score(2, 4)
    assert tally.total("a") == Score(2, 3)
    assert tally.total(item="x") == Score(2, 3)
    assert tally.total("b", "y") == Score(0, 0)
    assert (tally.groups, tally.items) == (["a", "b"], ["x", "y"])


def test_nothing_asked_is_no_zero() -> None:
    assert Score().to_dict() == {"right": 0, "asked": 0, "share": None}
    assert (str(Score()), str(Score(1, 3))) == ("-", "33.3 %")


# sheets


def square(colour: str, size: tuple[int, int] = (32, 32)) -> Image.Image:
    return Image.new("RGB", size, colour)


@pytest.mark.parametrize(
    ("count", "columns", "across", "down"), [(1, None, 1, 1), (5, 3, 3, 2), (2, 8, 2, 1), (6, 3, 3, 2)]
)
def test_a_sheet_has_the_size_of_its_grid(count: int, columns: int | None, across: int, down: int) -> None:
    sheet = grid_sheet([square("red")] * count, ["a"] * count, columns=columns, cell_px=100, font_px=10)
    row_px = 100 + GAP // 2 + 13
    assert sheet.size == (GAP + across * (100 + GAP), GAP + down * (row_px + GAP))


def test_pictures_stand_in_reading_order_and_keep_their_shape() -> None:
    sheet = grid_sheet([square("red"), square("blue", (64, 16))], ["", ""], columns=2, cell_px=64)
    assert sheet.getpixel((GAP + 1, GAP + 1)) == (255, 0, 0)
    left = GAP + 64 + GAP
    for x in (left, left + 63):
        assert sheet.getpixel((x, GAP + 32)) == (0, 0, 255)
    assert sheet.getpixel((left - 3, GAP + 32)) == (255, 255, 255)
    assert sheet.getpixel((left + 32, GAP + 8)) == (255, 255, 255)


def test_a_label_is_drawn_under_its_picture() -> None:
    plain, labelled = (grid_sheet([square("red")], [text], cell_px=64) for text in (" ", "a fox"))
    assert plain.size == labelled.size
    below = (0, GAP + 66, *plain.size)
    assert plain.crop(below).getextrema() == ((255, 255),) * 3
    assert labelled.crop(below).getextrema()[0][0] < 100


def test_a_sheet_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        grid_sheet([], [])


@pytest.mark.parametrize(
    "text",
    ["a flat drawing of three pieces of meat", "Donaudampfschifffahrtsgesellschaft", "", "said: a fox\nis: a dog"],
)
def test_wrapped_lines_fit_and_lose_no_letter(text: str) -> None:
    font = ImageFont.load_default(12)
    lines = wrapped(text, font, 80, 20)
    assert all(font.getlength(line) <= 80 for line in lines)
    assert "".join(lines).replace(" ", "") == "".join(text.split())


def test_a_label_that_is_too_long_ends_in_dots() -> None:
    font = ImageFont.load_default(12)
    lines = wrapped("a very long label " * 10, font, 80, 3)
    assert len(lines) == 3
    assert lines[-1].endswith("...")
    assert font.getlength(lines[-1]) <= 80


# whole evaluations


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Many small steps: threads that wait for each other take longer, above all where other tests run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def session(tiny_model: Path) -> Session:
    """A model whose answers are noise."""
    return load(tiny_model, device="cpu")


def write_lines(path: Path, records: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")


def eval_set(folder: Path, images: int = 2) -> Path:
    """A set of single-coloured pictures, three questions each, and four prompts."""
    (folder / "images").mkdir(parents=True)
    records = []
    for s, split in enumerate(SPLITS):
        for i in range(images):
            image, colour = f"images/{s}-{i}.png", COLOURS[(s + i) % 4]
            square(colour, (40, 40)).save(folder / image)
            about = {"split": split, "image": image}
            records += [
                {**about, "question": "what is here?", "type": "name", "answers": [f"a {colour} square", "a square"]},
                {**about, "question": "what color is the background?", "type": "ground", "answers": [colour]},
                {**about, "question": "how many things?", "type": "things", "answers": ["one", "1"]},
            ]
    write_lines(folder / "eval.jsonl", records)
    checks = [{"question": "what is here?", "answers": ["a fox"]}, {"question": "how many foxes?", "answers": ["one"]}]
    kinds = [f"{kind}/{split}" for kind in ("one", "two") for split in SPLITS[:2]]
    prompts = [{"prompt": f"a fox {i}", "kind": kind, "checks": checks} for i, kind in enumerate(kinds)]
    write_lines(folder / "prompts.jsonl", prompts)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A small evaluation set."""
    return eval_set(tmp_path / "set")


def measured(session: Session, data: Path, **options: Any) -> EvaluationResult:
    """The result of a whole evaluation."""
    *_, result = evaluate_picturebook(session, data, **options)
    assert isinstance(result, EvaluationResult)
    return result


Asked = list[tuple[Image.Image, str]]


@pytest.fixture
def knowing(session: Session, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Makes the model answer by rule, and lists what it was asked.

    It sees red squares and one thing everywhere, knows no background, and says "a fox" of what it has drawn.
    """
    asked: Asked = []
    drawn: list[bytes] = []
    draw = session._draw

    def captions(images: Sequence[Image.Image], questions: Sequence[str], **_: object) -> list[SimpleNamespace]:
        asked.extend(zip(images, questions, strict=True))
        return [SimpleNamespace(text=answer(i, q)) for i, q in zip(images, questions, strict=True)]

    def answer(image: Image.Image, question: str) -> str:
        if "how many" in question:
            return "1"
        if "background" in question:
            return "no idea"
        return "A fox!" if image.resize((32, 32)).tobytes() in drawn else "red square"

    def remembered(*arguments: Any) -> list[Image.Image]:
        images = draw(*arguments)
        # as the model will see them again
        size = session.config.vision_image_size
        drawn.extend(i.resize((size, size), Image.Resampling.BICUBIC).resize((32, 32)).tobytes() for i in images)
        return images

    monkeypatch.setattr(session, "captions", captions)
    monkeypatch.setattr(session, "_draw", remembered)
    return asked


def test_right_answers_are_counted_by_split_and_type(session: Session, data: Path, knowing: Asked) -> None:
    result = measured(session, data)
    facts = result.to_dict()
    # one picture in the first split and one in the last are red
    assert [facts["naming"][split]["right"] for split in SPLITS] == [1, 0, 0, 1]
    assert facts["naming"]["all"] == {"right": 2, "asked": 8, "share": 0.25}
    by_type = facts["answering"]["all"]["by_type"]
    assert list(by_type) == ["name", "ground", "things"]
    assert by_type["ground"]["share"] == 0
    assert by_type["things"] == {"right": 8, "asked": 8, "share": 1}
    assert facts["answering"]["unseen_pairs"]["right"] == 2
    assert facts["answering"]["all"]["asked"] == 24
    assert facts["drawing"] is None


def test_every_question_is_asked_once_of_its_picture_as_the_model_sees_it(
    session: Session, data: Path, knowing: Asked
) -> None:
    measured(session, data)
    assert len(knowing) == 24
    for image, _ in knowing:
        assert image.size == (session.config.vision_image_size,) * 2
    colours = [image.getpixel((5, 5)) for image, question in knowing if question == "what is here?"]
    assert colours.count((255, 0, 0)) == 2


def test_each_picture_is_decoded_once(
    session: Session, data: Path, knowing: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    load_image = evaluation.load_image
    monkeypatch.setattr(evaluation, "load_image", lambda source: opened.append(source) or load_image(source))
    monkeypatch.setattr(evaluation, "WINDOW", 3)
    measured(session, data)
    assert len(opened) == len(set(opened)) == 8


def test_drawings_are_judged_by_the_model_and_it_is_said(session: Session, data: Path, knowing: Asked) -> None:
    result = measured(session, data, limit=1, draw=3)
    drawing = result.to_dict()["drawing"]
    assert "cycle accuracy" in drawing["metric"]
    assert drawing["pictures"] == len(result.drawn) == 3
    assert drawing["checks"]["all"]["right"] == drawing["checks"]["all"]["asked"] == 6
    assert drawing["naming"]["all"]["asked"] == 3
    assert drawing["checks"]["unseen_scenes"]["by_type"] == {
        "one": {"right": 2, "asked": 2, "share": 1},
        "two": {"right": 2, "asked": 2, "share": 1},
    }
    assert [prompt for _, prompt in result.drawn] == ["a fox 0", "a fox 1", "a fox 2"]
    headers, rows = result.table()
    assert headers == ["", *SPLITS, "all", "asked"]
    table = {row[0]: row[1:] for row in rows}
    assert table["name"] == ["100.0 %", "0.0 %", "0.0 %", "0.0 %", "25.0 %", "4"]
    assert table["cycle accuracy: two"] == ["100.0 %", "-", "-", "-", "100.0 %", "2"]
    assert table["cycle accuracy: all"][-1] == "6"


def test_the_failure_sheet_shows_what_was_named_wrongly(session: Session, data: Path, knowing: Asked) -> None:
    result = measured(session, data)
    assert len(result.failures) == 6
    first = result.failures[0]
    assert (first.answer, first.truth, first.image) == ("red square", "a green square", data / "images/0-1.png")
    sheet = result.failure_sheet
    assert sheet is not None
    assert sheet.getpixel((GAP + 20, GAP + 20)) == (0, 128, 0)


def test_failures_are_shown_from_every_split_in_turn() -> None:
    from omnimamba_cli.engine.results import _in_turn

    failures = [Failure(split, Path(str(n)), "", "") for split, n in [("a", 0), ("a", 1), ("a", 2), ("b", 3)]]
    assert [failure.image.name for failure in _in_turn(failures, 3)] == ["0", "3", "1"]


def test_a_random_model_is_measured_whole(session: Session, data: Path) -> None:
    spoken = session.caption(data / "images/2-0.png", "what is here?")
    lines = [json.loads(line) for line in (data / "eval.jsonl").read_text().splitlines()]
    assert (lines[12]["image"], lines[12]["type"]) == ("images/2-0.png", "name")
    lines[12]["answers"] = [spoken]
    write_lines(data / "eval.jsonl", lines)
    events = list(evaluate_picturebook(session, data, draw=2, seed=5))
    *steps, result = events
    assert isinstance(result, EvaluationResult)
    assert all(isinstance(step, EvaluationStep) for step in steps)
    assert sum(step.done for step in steps) == steps[0].total == 24 + 2 + 4
    facts = json.loads(json.dumps(result.to_dict()))
    assert facts["naming"]["all"]["right"] == facts["naming"]["unseen_drawing"]["right"] == 1
    assert facts["model"]["name"] == "tiny"
    assert set(facts["model"]["sha256"]) == {"model.safetensors", "vision.safetensors", "vq.safetensors"}
    assert facts["settings"]["seed"] == 5
    assert facts["settings"]["image_sampling"]["guidance"] == 2.0
    assert facts["data"]["questions"] == 24
    assert {"omnimamba", "torch", "python"} == set(facts["versions"])
    assert facts["date"].endswith("+00:00")
    sheet = result.sheet
    assert sheet is not None
    assert sheet.width == GAP + 2 * (160 + GAP)


def test_the_batch_size_changes_no_score_and_no_drawing(session: Session, data: Path) -> None:
    one, many = (measured(session, data, draw=2, batch_size=size) for size in (1, 7))
    assert one.answers == many.answers
    assert [(f.image, f.answer) for f in one.failures] == [(f.image, f.answer) for f in many.failures]
    assert [image.tobytes() for image, _ in one.drawn] == [image.tobytes() for image, _ in many.drawn]


def test_drawing_i_uses_seed_plus_i(session: Session, data: Path, knowing: Asked) -> None:
    result = measured(session, data, limit=1, draw=2, seed=7)
    assert result.drawn[1][0].tobytes() == session.generate("a fox 1", seed=8)[0].tobytes()


def test_limit_takes_the_first_pictures_of_each_split_whole(session: Session, data: Path, knowing: Asked) -> None:
    facts = measured(session, data, limit=1).to_dict()
    assert facts["data"]["pictures"] == 4
    assert [facts["answering"][split]["asked"] for split in SPLITS] == [3] * 4


def test_more_drawings_than_prompts_draw_every_prompt(session: Session, data: Path, knowing: Asked) -> None:
    assert len(measured(session, data, limit=1, draw=99).drawn) == 4


# what can be wrong with a set


def test_a_folder_without_a_set_is_refused_with_the_command_that_makes_one(session: Session, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no evaluation set") as caught:
        evaluate_picturebook(session, tmp_path)
    assert caught.value.hint is not None
    assert "make.py" in caught.value.hint
    assert caught.value.hint.endswith(f"eval --n 300 --out {tmp_path}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "line 2: is no JSON"),
        (b"[1]", "line 2: is no JSON object"),
        (b"\xff\xfe", "is no JSON"),
        (b'{"split": "s", "image": "i.png", "question": "q", "answers": ["a"]}', '"type" is null'),
        (b'{"split": "s", "image": "i.png", "question": 3, "type": "t", "answers": ["a"]}', '"question" is 3'),
        (b'{"split": "s", "image": "i.png", "question": "q", "type": "t", "answers": []}', '"answers" is'),
        (b'{"split": "s", "image": "i.png", "question": "q", "type": "t", "answers": "a"}', '"answers" is'),
    ],
)
def test_a_malformed_line_is_named(session: Session, data: Path, line: bytes, message: str) -> None:
    good = (data / "eval.jsonl").read_bytes().splitlines()[0]
    (data / "eval.jsonl").write_bytes(good + b"\n" + line + b"\n")
    with pytest.raises(DataError, match=message):
        evaluate_picturebook(session, data)


def test_an_empty_set_is_refused(session: Session, data: Path) -> None:
    (data / "eval.jsonl").write_text("\n")
    with pytest.raises(DataError, match="holds no question"):
        evaluate_picturebook(session, data)


def test_prompts_are_needed_to_draw_only(session: Session, data: Path, knowing: Asked) -> None:
    (data / "prompts.jsonl").unlink()
    with pytest.raises(InputError, match="nothing to draw"):
        evaluate_picturebook(session, data, draw=1)
    assert measured(session, data).sheet is None


def test_checks_must_be_a_list(session: Session, data: Path) -> None:
    write_lines(data / "prompts.jsonl", [{"prompt": "a fox", "kind": "one", "checks": "?"}])
    with pytest.raises(DataError, match='"checks" must be'):
        evaluate_picturebook(session, data, draw=1)


def test_a_missing_picture_is_named(session: Session, data: Path) -> None:
    (data / "images/0-1.png").unlink()
    with pytest.raises(InputError, match=r"0-1\.png: no such file"):
        measured(session, data)


@pytest.mark.parametrize("options", [{"limit": 0}, {"draw": -1}])
def test_impossible_numbers_are_refused(session: Session, data: Path, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="limit is"):
        evaluate_picturebook(session, data, **options)  # type: ignore[arg-type]  # by name


def test_a_model_that_cannot_draw_says_so_before_any_answer(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    blind = tmp_path / "model"
    blind.mkdir()
    for file in tiny_model.iterdir():
        if file.name != "vq.safetensors":
            (blind / file.name).write_bytes(file.read_bytes())
    events = evaluate_picturebook(load(blind, device="cpu"), data, draw=1)
    next(events)
    with pytest.raises(CheckpointError, match="vq"):
        next(events)


# the command


def test_the_command_writes_table_results_and_sheets(
    tiny_model: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    written = {name: tmp_path / name for name in ("drawn.png", "wrong.png", "result.json")}
    sheets = ["--sheet", str(written["drawn.png"]), "--failures", str(written["wrong.png"])]
    command = ["eval", "picturebook", "--data", str(data), "-m", str(tiny_model), "--device", "cpu", "--limit", "1"]
    assert main([*command, "--draw", "2", *sheets, "--out", str(written["result.json"])]) == 0
    out, err = capfd.readouterr()
    assert out.splitlines()[0].split() == [*SPLITS, "all", "asked"]
    assert "cycle accuracy: all" in out
    assert "the model judged its own drawings" in err
    assert json.loads(written["result.json"].read_text())["drawing"]["pictures"] == 2
    assert Image.open(written["drawn.png"]).width == GAP + 2 * (160 + GAP)
    assert Image.open(written["wrong.png"]).width > 160


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--draw", "0", "--sheet", "s.png"], 2, "--draw 0 draws nothing"),
        (["--failures", "s.jpg"], 2, "written as PNG"),
        (["--sheet", "s.png", "--failures", "s.png"], 2, "the same file"),
        ([], 3, "holds no evaluation set"),
    ],
)
def test_the_command_refuses_what_cannot_be(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], options: list[str], code: int, message: str
) -> None:
    assert main(["eval", "picturebook", "--data", str(tmp_path), "-m", str(tiny_model), *options]) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert message in err
    assert "hint: " in err or "the same file" in err
