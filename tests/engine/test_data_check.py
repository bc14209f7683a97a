"""What `data check` finds, and that the layout it shows is the one that training uses."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from omnimamba_cli.config import ModelConfig
from omnimamba_cli.data.batches import Collate
from omnimamba_cli.data.sequences import conversation, t2i_prefix
from omnimamba_cli.data.talks import Talk
from omnimamba_cli.data.tokenizer import TextTokenizer
from omnimamba_cli.engine.data_check import CheckSettings, FileReport, check_file
from omnimamba_cli.engine.data_layout import drawing_layout, talk_layout

Check = Callable[..., FileReport]


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path, tiny_config: ModelConfig) -> TextTokenizer:
    return TextTokenizer.from_file(tiny_model / "tokenizer.json", tiny_config.text)


@pytest.fixture
def check(tiny_config: ModelConfig, tokenizer: TextTokenizer, tmp_path: Path) -> Check:
    """`check(rows, limit=...)`, with the pictures a.png, and cut.png that is cut off behind its head."""
    Image.effect_noise((64, 48), 50).save(tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:1000])

    def report(rows: list[object], **changes: object) -> FileReport:
        path = tmp_path / "data.jsonl"
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        settings = CheckSettings(config=tiny_config, tokenizer=tokenizer, **changes)  # type: ignore[arg-type]
        *_, last = check_file(path, settings)
        assert isinstance(last, FileReport)
        return last

    return report


def talk(*answers: str, image: str | None = "a.png", question: str = "Q", **more: object) -> dict[str, object]:
    messages = [m for a in answers for m in ({"from": "human", "value": question}, {"from": "gpt", "value": a})]
    return {"conversations": messages, **({"image": image} if image else {}), **more}


def found(report: FileReport) -> dict[str, list[str]]:
    return {kind: [name for name, _ in problem.first] for kind, problem in report.problems.items()}


def test_good_data_have_no_problems(check: Check) -> None:
    report = check([talk("A1", "A2"), talk("A3", image=None), {"image": "a.png", "caption": "a fox"}])
    assert (report.samples, report.usable, report.pictures, report.decoded) == (3, 3, 2, 2)
    assert (report.problems, report.error) == ({}, None)


def test_every_problem_of_conversations_is_counted_and_named(check: Check) -> None:
    long = "a red fox " * 40
    rows = [
        talk("A", id="x"),
        talk("A", id="x"),
        talk("A", image="gone.png"),
        talk("A", image="cut.png"),
        talk("A", question=long),
        talk(long),
        talk("A", long),
        talk(""),
        "{",
        "[1]",
    ]
    report = check([*rows, *[talk("A")] * 100], limit=0.1)
    assert found(report) == {
        "duplicate": ["data.jsonl:2"],
        "picture": ["data.jsonl:3", "data.jsonl:4"],
        "too long": ["data.jsonl:5"],
        "cut": ["data.jsonl:6", "data.jsonl:7"],
        "malformed": ["data.jsonl:8", "data.jsonl:9", "data.jsonl:10"],
    }
    assert (report.samples, report.usable, report.bad, report.error) == (110, 104, 6, None)
    reasons = dict(report.problems["cut"].first)
    assert "cut there, without an end" in reasons["data.jsonl:6"]
    assert "only 1 of 2 answers fit" in reasons["data.jsonl:7"]
    strict = check(rows)
    assert "6 of 10 samples" in (strict.error or "")
    assert "more than 5%" in (strict.error or "")


def test_only_the_asked_share_is_decoded_and_a_cut_picture_then_passes(check: Check) -> None:
    rows: list[object] = [talk("A", image="cut.png", id=i) for i in range(200)]
    heads = check(rows, decode=0)
    assert (heads.decoded, heads.usable, heads.problems) == (0, 200, {})
    some = check(rows, decode=50)
    assert 25 < some.decoded < 80
    assert some.problems["picture"].count == some.decoded == some.bad
    every = check(rows, decode=None)
    assert every.decoded == every.problems["picture"].count == 200
    assert every.error is not None


def test_codes_of_wrong_number_or_range_are_told_apart(check: Check, tiny_config: ModelConfig) -> None:
    good = {"tokens": [1] * 64, "captions": ["a fox"]}
    rows = [
        {**good, "tokens": [1] * 63},
        {**good, "tokens": [1] * 63 + [64]},
        {**good, "tokens": [1] * 63 + [-1]},
        {**good, "captions": [" "]},
        {**good, "captions": ["a red fox " * 20]},
        {**good, "id": 1},
        {**good, "id": 1},
    ]
    report = check([*rows, *[good] * 93], limit=0.1)
    assert report.kind == "codes"
    assert found(report) == {
        "codes": ["data.jsonl:1", "data.jsonl:2", "data.jsonl:3"],
        "malformed": ["data.jsonl:4"],
        "cut": ["data.jsonl:5"],
        "duplicate": ["data.jsonl:7"],
    }
    assert [reason for _, reason in report.problems["codes"].first] == [
        "it has 63 codes, the model draws with 64",
        "code 63 is 64, outside 0 to 63",
        "code 63 is -1, outside 0 to 63",
    ]
    assert (report.samples, report.usable) == (100, 96)


@pytest.mark.parametrize("image", ["a.png", None])
def test_the_layout_is_what_training_uses(
    image: str | None, check: Check, tiny_config: ModelConfig, tokenizer: TextTokenizer
) -> None:
    (layout,) = check([talk("a red fox", "two", image=image)]).examples
    assert [span.start for span in layout.spans] == [0, *(span.end for span in layout.spans[:-1])]
    ids, targets = conversation(tiny_config, tokenizer, [("Q", "a red fox"), ("Q", "two")])
    picture = torch.zeros(3, 64, 64, dtype=torch.uint8) if image else None
    batch = Collate(tiny_config)([Talk(picture, ids, targets)])
    trained = [place for span in layout.spans if span.trained for place in range(span.start, span.end)]
    assert [place + 1 for place in batch.places.tolist()] == trained  # the state before a target predicts it
    assert layout.spans[-1].end == len(ids) + (tiny_config.patches + 4 if image else 2)
    assert "".join(span.text or "" for span in layout.spans) == (
        "In: Q\nOut: a red fox<|endoftext|>\nIn: Q\nOut: two<|endoftext|>"
    )
    assert layout.picture == ("64x48" if image else None)


@pytest.mark.parametrize("caption", ["", "a red fox", "a red fox " * 20])
def test_a_drawings_layout_follows_its_prefix(caption: str, tiny_config: ModelConfig, tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode(caption)
    spans = drawing_layout(tiny_config, tokenizer, ids)
    prefix = t2i_prefix(tiny_config, ids)
    pad = tiny_config.text.special("[PAD]")
    assert [span.start for span in spans] == [0, *(span.end for span in spans[:-1])]
    pads = [place for span in spans if "[PAD]" in span.what for place in range(span.start, span.end)]
    assert pads == [place for place, token in enumerate(prefix) if token == pad]
    words = [place for span in spans if span.what == "caption" for place in range(span.start, span.end)]
    assert [prefix[place] for place in words] == ids[: tiny_config.caption_tokens]
    assert (spans[0].what, spans[1].what, spans[-3].what, spans[-2].what) == ("[t2i]", "[sot]", "[eot]", "[soi]")
    assert [(span.start, span.end) for span in spans if span.trained] == [(len(prefix), len(prefix) + 64)]


def test_a_layout_without_questions_starts_with_the_answer(tiny_config: ModelConfig, tokenizer: TextTokenizer) -> None:
    ids, targets = conversation(tiny_config, tokenizer, [("Q", "a fox")], questions=False)
    spans = talk_layout(tiny_config, tokenizer, ids, targets, shown=True)
    assert [span.what for span in spans] == ["[mmu]", "[soi]", "picture: 16 patches", "[eoi]", "[sot]", "answer"]
