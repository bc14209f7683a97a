"""Readers of training data and the order of samples."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from omnimamba_cli.config import ModelConfig
from omnimamba_cli.data import sequences
from omnimamba_cli.data.batches import Collate
from omnimamba_cli.data.codes import DrawnCodes
from omnimamba_cli.data.mixing import Order, Sampler, Split
from omnimamba_cli.data.records import read_records
from omnimamba_cli.data.rejects import Bad, Rejects
from omnimamba_cli.data.samples import draws, make
from omnimamba_cli.data.talks import Conversations, Talk
from omnimamba_cli.data.tokenizer import TextTokenizer
from omnimamba_cli.errors import DataError


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path, tiny_config: ModelConfig) -> TextTokenizer:
    return TextTokenizer.from_file(tiny_model / "tokenizer.json", tiny_config.text)


def write(path: Path, rows: list[object], *, array: bool = False) -> Path:
    text = json.dumps(rows) if array else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text)
    return path


def row(code: int = 1, count: int = 64, captions: object = ("a red fox",)) -> dict[str, object]:
    return {"tokens": [code] * count, "captions": list(captions) if isinstance(captions, tuple) else captions}


def test_arrays_and_lines_give_the_same_records(tmp_path: Path) -> None:
    rows: list[object] = [{"a": 1}, {"b": [1, "]"]}]
    found = [
        [r for _, r in read_records(write(tmp_path / f"{array}.json", rows, array=array), Rejects())]
        for array in (True, False)
    ]
    assert found == [rows, rows]


def test_malformed_array_is_refused_with_its_item(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('[{"a": 1}, {"a": ')
    with pytest.raises(DataError, match="item 2"):
        list(read_records(path, Rejects()))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (row(count=63), "63 codes"),
        (row(code=64), "outside"),
        (row(code=-1), "outside"),
        ({"tokens": [0.5] * 64, "captions": ["x"]}, "whole number"),
        (row(captions=()), "captions"),
        (row(captions=[3]), "captions"),
        (["no object"], "no JSON object"),
    ],
)
def test_bad_rows_of_codes_are_counted_and_named(
    bad: object, reason: str, tmp_path: Path, tiny_config: ModelConfig, tokenizer: TextTokenizer
) -> None:
    path = write(tmp_path / "codes.jsonl", [*[row()] * 30, bad, *[row()] * 30])
    for _ in range(2):  # parsed, then from the cache
        dataset = DrawnCodes([path], tiny_config, tokenizer)
        assert len(dataset) == 60
        assert list(dataset.rejects.reasons) == ["codes.jsonl:31"]
        assert reason in dataset.rejects.reasons["codes.jsonl:31"]


def test_too_many_bad_rows_are_refused(tmp_path: Path, tiny_config: ModelConfig, tokenizer: TextTokenizer) -> None:
    path = write(tmp_path / "codes.jsonl", [row(), row(count=3)])
    with pytest.raises(DataError, match=r"codes\.jsonl:2"):
        DrawnCodes([path], tiny_config, tokenizer)


def test_cache_gives_the_same_rows_and_follows_the_file(
    tmp_path: Path, tiny_config: ModelConfig, tokenizer: TextTokenizer
) -> None:
    path = write(tmp_path / "codes.jsonl", [row(i, captions=(f"a {i}", "")) for i in range(8)])
    positions, indices = np.arange(8), np.arange(8)
    one, two = (DrawnCodes([path], tiny_config, tokenizer).rows(positions, indices) for _ in range(2))
    assert (tmp_path / "codes.jsonl.cache.npz").is_file()
    assert all(a.equal(b) for a, b in zip(one, two, strict=True))
    write(path, [row(i + 20) for i in range(3)])
    assert DrawnCodes([path], tiny_config, tokenizer).codes[:, 0].tolist() == [20, 21, 22]


def test_a_damaged_cache_is_made_anew(tmp_path: Path, tiny_config: ModelConfig, tokenizer: TextTokenizer) -> None:
    path = write(tmp_path / "codes.jsonl", [row(i) for i in range(3)])
    DrawnCodes([path], tiny_config, tokenizer)
    cache = tmp_path / "codes.jsonl.cache.npz"
    whole = cache.read_bytes()
    other = whole.replace(b"rejects.npy", b"rejected.np")  # still a zip file
    for damaged in (whole[: len(whole) // 2], whole.replace(b"PK\x01\x02", b"PK\x01\x03"), other, b""):
        cache.write_bytes(damaged)
        assert DrawnCodes([path], tiny_config, tokenizer).codes[:, 0].tolist() == [0, 1, 2]
        assert cache.read_bytes() != damaged


def test_captions_are_drawn_anew_and_dropped_at_the_stated_rate(
    tmp_path: Path, tiny_config: ModelConfig, tokenizer: TextTokenizer
) -> None:
    dataset = DrawnCodes([write(tmp_path / "codes.jsonl", [row(captions=("a", "b"))])], tiny_config, tokenizer)
    prefixes, _ = dataset.rows(np.arange(4000), np.zeros(4000, np.int64))
    kinds = {tuple(p): 0 for p in prefixes.tolist()}
    for prefix in prefixes.tolist():
        kinds[tuple(prefix)] += 1
    empty = tuple(sequences.t2i_prefix(tiny_config, []))
    assert kinds.pop(empty) / 4000 == pytest.approx(tiny_config.caption_dropout, abs=0.02)
    spelled = {tuple(sequences.t2i_prefix(tiny_config, tokenizer.encode(c))) for c in "ab"}
    assert set(kinds) == spelled
    assert min(kinds.values()) > 1500


def test_captions_of_codes_are_spelled_as_those_of_pictures(
    tmp_path: Path, tiny_config: ModelConfig, tokenizer: TextTokenizer
) -> None:
    caption = "a \ud800 fox"  # JSON may hold half a character
    dataset = DrawnCodes([write(tmp_path / "codes.jsonl", [row(captions=(caption,))])], tiny_config, tokenizer)
    assert dataset.prefixes[1].tolist() == sequences.t2i_prefix(tiny_config, tokenizer.encode(caption))


@pytest.fixture
def talks(tmp_path: Path, tiny_config: ModelConfig, tokenizer: TextTokenizer) -> Conversations:
    Image.new("RGB", (40, 20), "red").save(tmp_path / "a.png")
    (tmp_path / "text.png").write_text("no picture")
    said = [
        {"from": "human", "value": "<image>\nQ1"},
        {"from": "gpt", "value": "A1"},
        {"from": "human", "value": "Q2"},
        {"from": "gpt", "value": "A2"},
    ]
    long = [{"from": "human", "value": "word " * 200}, {"from": "gpt", "value": "A"}]
    rows: list[object] = [
        {"image": "a.png", "conversations": said},
        {"conversations": said},
        {"image": "text.png", "conversations": said},
        {"image": "a.png", "conversations": long},
        {"image": "a.png", "caption": "a red fox"},
    ]
    path = write(tmp_path / "talks.json", rows, array=True)
    return Conversations([path], None, tiny_config, tokenizer, questions=True)


def test_conversation_keeps_every_turn_and_drops_the_marker(talks: Conversations) -> None:
    item = talks[0, 0]
    assert isinstance(item, Talk)
    assert (
        item.ids == sequences.conversation(talks.maker.config, talks.maker.tokenizer, [("Q1", "A1"), ("Q2", "A2")])[0]
    )
    assert item.pixels is not None
    assert item.pixels.shape == (3, 64, 64)


def test_unusable_samples_say_why(talks: Conversations) -> None:
    unreadable, long = (make(talks.maker, talks.raw(i), 0) for i in (2, 3))
    assert isinstance(unreadable, Bad)
    assert "text.png" in unreadable.reason
    assert isinstance(long, Bad)
    assert "no answer within" in long.reason


def test_a_bad_sample_is_replaced_by_one_that_the_position_draws(talks: Conversations) -> None:
    for position in range(20):
        item, again = talks[position, 2], talks[position, 2]
        assert isinstance(item, Talk)
        assert item.ids == again.ids
        assert item.instead_of[0].name == "talks.json[3]"
        assert {bad.name for bad in item.instead_of} <= {"talks.json[3]", "talks.json[4]"}
        batch = Collate(talks.maker.config)([item, talks[position, 0]])
        assert batch.bad == list(item.instead_of)
        assert batch.samples == 2 + len(batch.bad)
    assert len({tuple(talks[position, 2].ids) for position in range(20)}) == 2  # two of the good ones say the same


def test_where_every_sample_is_bad_the_row_stays_empty(talks: Conversations, tmp_path: Path) -> None:
    for path in tmp_path.glob("*.png"):
        path.unlink()
    only = write(tmp_path / "only.jsonl", [{"image": "a.png", "caption": "a"}, {"image": "b.png", "caption": "b"}])
    maker = talks.maker
    item = Conversations([only], None, maker.config, maker.tokenizer, questions=True)[0, 1]
    assert isinstance(item, Bad)
    assert item.name == "only.jsonl:2"
    batch = Collate(maker.config)([item])
    assert batch.count == 0
    assert {bad.name for bad in batch.bad} <= {"only.jsonl:1", "only.jsonl:2"}


def test_caption_alone_answers_the_models_question(talks: Conversations) -> None:
    item = talks[0, 4]
    assert isinstance(item, Talk)
    turn = [(talks.maker.config.default_question, "a red fox")]
    assert item.ids == sequences.conversation(talks.maker.config, talks.maker.tokenizer, turn)[0]


def test_collated_places_are_those_before_the_targets(talks: Conversations) -> None:
    config = talks.maker.config
    items = [talks[0, 1], talks[0, 0]]
    batch = Collate(config)(items)
    text = items[1]
    assert isinstance(text, Talk)
    shown = sequences.mmu_prefix(config) + [-1] * config.patches + sequences.mmu_middle(config) + text.ids
    plain = [sequences.mmu_prefix(config)[0], sequences.mmu_middle(config)[-1], *text.ids]
    flat = [i for r in (shown, plain) for i in r + [-2] * (batch.length - len(r))]
    assert [flat[place + 1] for place in batch.places.tolist()] == batch.targets.tolist()
    assert batch.count == 2 * sum(text.targets)
    assert batch.length % 8 == 0


def test_every_epoch_sees_every_sample_in_a_new_order() -> None:
    order = Order(10, seed=3)
    epochs = [order.indices(np.arange(e * 10, e * 10 + 10)).tolist() for e in range(3)]
    assert all(sorted(e) == list(range(10)) for e in epochs)
    assert len({tuple(e) for e in epochs}) == 3


def test_batches_from_a_later_step_are_the_same_batches() -> None:
    split = Split(7, parts=2)
    whole, late = (iter(Sampler(Order(10, 0), split, step)) for step in (0, 3))
    skipped = [next(whole) for _ in range(6)]
    assert len(skipped[0]) + len(skipped[1]) == 7
    assert [next(whole) for _ in range(6)] == [next(late) for _ in range(6)]


def test_processes_share_a_step_without_overlap() -> None:
    alone = Split(10, parts=2).positions(3, 0).tolist() + Split(10, parts=2).positions(3, 1).tolist()
    shared = [p for part in range(2) for r in range(3) for p in Split(10, 2, 3, r).positions(3, part).tolist()]
    assert shared == alone


def test_draws_are_uniform_and_depend_on_position_alone() -> None:
    numbers = draws(1, np.arange(20_000), 0)
    assert abs(numbers.mean() - 0.5) < 0.01
    assert np.histogram(numbers, 10, (0, 1))[0].min() > 1800
    assert draws(1, np.array([123]), 0)[0] == numbers[123]
    assert abs(np.corrcoef(numbers, draws(1, np.arange(20_000), 1))[0, 1]) < 0.03
