"""Tar shards: a fixed order, resumed exactly, shared by processes, and what is wrong with them said."""

import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from omnimamba_cli.config import ModelConfig
from omnimamba_cli.data import shards
from omnimamba_cli.data.batches import Collate, all_bad
from omnimamba_cli.data.mixing import Split, sample_batches
from omnimamba_cli.data.rejects import Bad, Rejects
from omnimamba_cli.data.samples import Raw
from omnimamba_cli.data.shards import Shard, ShardSampler, ShardSamples, find_shards, samples_of
from omnimamba_cli.data.talks import Talk, TalkMaker
from omnimamba_cli.data.tokenizer import TextTokenizer
from omnimamba_cli.errors import DataError, InputError, UsageError
from tests.data.conftest import Write

pytest.importorskip("webdataset", reason="webdataset is not installed: pip install 'omnimamba-cli[webdataset]'")

SIZES = [7, 5, 9, 3, 6, 4]  # 34 samples


@pytest.fixture
def maker(tiny_model: Path, tiny_config: ModelConfig) -> TalkMaker:
    tokenizer = TextTokenizer.from_file(tiny_model / "tokenizer.json", tiny_config.text)
    return TalkMaker(tiny_config, tokenizer, questions=True)


@pytest.fixture
def found(write_shards: Write) -> list[Shard]:
    return find_shards(write_shards(SIZES), Rejects())


def key_of(raw: Raw | Bad) -> str:
    return raw.name.rsplit("[")[1][:-1]


def names(sampler: ShardSampler, steps: int) -> list[list[tuple[int, str]]]:
    batches = islice(sampler, steps * sampler.split.parts)
    return [[(position, key_of(raw)) for position, raw in batch] for batch in batches]


def test_shards_are_counted_and_read_in_order(found: list[Shard]) -> None:
    assert [shard.samples for shard in found] == SIZES
    read = [raw for shard in found for raw in samples_of(shard.url)]
    assert [key_of(raw) for raw in read] == [f"s{i}" for i in range(34)]
    assert [raw.captions for raw in read if not isinstance(raw, Bad)] == [[f"number {i}"] for i in range(34)]
    assert all(raw.open().size == (8, 8) for raw in read if not isinstance(raw, Bad))


def test_every_epoch_of_a_lane_has_all_its_samples_in_a_new_order(write_shards: Write, monkeypatch: Any) -> None:
    monkeypatch.setattr(shards, "BLOCK", 3)
    found = find_shards(write_shards([6] * 4), Rejects())
    rows = names(ShardSampler(found, 1, Split(4), 0), 18)
    epochs = [sorted(name for row in rows[e : e + 6] for _, name in row) for e in (0, 6, 12)]
    assert epochs == [sorted(f"s{i}" for i in range(24))] * 3
    assert rows[:6] != rows[6:12]
    assert [p for row in rows for p, _ in row] == list(range(72))
    assert names(ShardSampler(found, 2, Split(4), 0), 6) != rows[:6]


@pytest.mark.parametrize("rows", [2, 5, 16])
def test_a_later_step_sees_the_same_batches(rows: int, found: list[Shard], monkeypatch: Any) -> None:
    monkeypatch.setattr(shards, "BLOCK", 4)
    whole = names(ShardSampler(found, 0, Split(rows, parts=2), 0), 40)
    for step in (1, 7, 23):
        assert names(ShardSampler(found, 0, Split(rows, parts=2), step), 40 - step) == whole[2 * step :]


def test_processes_share_each_step_and_open_shards_of_their_own(found: list[Shard], monkeypatch: Any) -> None:
    alone = [p for row in names(ShardSampler(found, 0, Split(6), 0), 20) for p in row]
    opened: list[set[str]] = []
    real = samples_of
    together = []
    for rank in range(3):
        opened.append(set())
        monkeypatch.setattr(shards, "samples_of", lambda url, mine=opened[-1]: mine.add(url) or real(url))
        sampler = ShardSampler(found, 0, Split(6, ranks=3, rank=rank), 0)
        together += [p for row in names(sampler, 2) for p in row]
    assert sorted(together) == alone[:12]
    assert not opened[0] & opened[1] | opened[1] & opened[2] | opened[0] & opened[2]


def test_batches_do_not_depend_on_workers_and_leave_bad_samples_out(write_shards: Write, maker: TalkMaker) -> None:
    samples = ShardSamples([write_shards([6, 6], bad=[4])], maker)
    batches = {}
    for workers in (0, 2):
        stream = sample_batches(samples, 0, Split(4), 0, collate=Collate(maker.config), workers=workers, pin=False)
        batches[workers] = list(islice(stream, 6))
    assert [b.ids.tolist() for b in batches[0]] == [b.ids.tolist() for b in batches[2]]
    assert [b.targets.tolist() for b in batches[0]] == [b.targets.tolist() for b in batches[2]]
    bad = [one for batch in batches[2] for one in batch.bad]
    assert [one.name.rsplit("/")[-1] for one in bad] == ["00.tar[s4]"] * 2  # two epochs
    assert all(len(b.pixels) + len(b.bad) == 4 for b in batches[0])


def test_samples_become_items(write_shards: Write, maker: TalkMaker) -> None:
    samples = ShardSamples([write_shards([3])], maker)
    items = [samples[key] for key in samples.in_order(1, 3)]
    assert all(isinstance(item, Talk) for item in items)
    assert all_bad(items) == []
    assert "number 2" in maker.tokenizer.decode(items[1].ids)


def test_captions_that_are_no_utf_8_are_a_bad_sample(write_shards: Write, maker: TalkMaker) -> None:
    path = write_shards([2]).parent / "00.tar"
    path.write_bytes(path.read_bytes().replace(b"number 1\n", b"caf\xe9 au "))
    _, item = (samples[key] for samples in [ShardSamples([path], maker)] for key in samples.in_order(0, 2))
    assert isinstance(item, Bad)
    assert item.reason == "byte 0xe9 is no UTF-8"


@pytest.mark.parametrize(("member", "samples"), [(b"s3.png", 3), (b"s3.txt", 4)])
def test_a_cut_off_shard_counts_what_is_whole_and_is_named(
    member: bytes, samples: int, write_shards: Write, maker: TalkMaker
) -> None:
    path = write_shards([5]).parent / "00.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(member) + 512 + 3])  # within what follows its header
    found = ShardSamples([path], maker)
    assert len(found) == samples
    assert list(found.rejects.reasons) == [str(path)]
    assert "cut off" in found.rejects.reasons[str(path)]
    items = [found[key] for key in found.in_order(0, samples)]
    # of the last one the picture alone is there
    assert [isinstance(item, Bad) for item in items] == [False] * 3 + [True] * (samples - 3)


def test_a_shard_alone_is_mixed_anew_each_epoch(write_shards: Write) -> None:
    found = find_shards(write_shards([12]), Rejects())
    rows = names(ShardSampler(found, 0, Split(1), 0), 24)
    one, two = ([name for row in part for _, name in row] for part in (rows[:12], rows[12:]))
    assert sorted(one) == sorted(two) == sorted(f"s{i}" for i in range(12))
    assert one != two


def test_a_list_names_shards_behind_programs_and_beside_it(write_shards: Write) -> None:
    folder = write_shards([3, 2]).parent
    path = folder / "all.shards.jsonl"
    rows = [{"shard": "00.tar", "samples": 3}, {"shard": f"pipe:cat {folder / '01.tar'}", "samples": 2}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = find_shards(path, Rejects())
    read = [key_of(raw) for shard in found for raw in samples_of(shard.url)]
    assert read == ["s0", "s1", "s2", "s3", "s4"]
    path.write_text("\n" + json.dumps(rows[0]) + "\n\n")
    assert [shard.samples for shard in find_shards(path, Rejects())] == [3]
    for wrong in ('{"shard": "x"}', '{"shard": "x", "samples": -3}', '{"shard": "x", "samples": 1.5}'):
        path.write_text(json.dumps(rows[0]) + f"\n\n{wrong}\n")
        with pytest.raises(DataError, match=r"all.shards.jsonl:3: no shard"):
            find_shards(path, Rejects())


def test_a_list_that_promises_too_much_is_refused(write_shards: Write, maker: TalkMaker) -> None:
    shard = Shard(str(write_shards([3]).parent / "00.tar"), 5)
    path = Path(shard.url).with_name("all.shards.jsonl")
    path.write_text('{"shard": "00.tar", "samples": 5}\n')
    with pytest.raises(DataError, match="holds 3 samples, not 5"):  # as data check and tokenize read them
        list(ShardSamples([path], maker).raws())
    with pytest.raises(DataError, match="holds 3 samples, not 5"):
        names(ShardSampler([shard], 0, Split(1), 0), 5)


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        find_shards(tmp_path / "none.tar", Rejects())
    (tmp_path / "empty.tar").write_bytes(b"")
    rejects = Rejects()
    find_shards(tmp_path / "empty.tar", rejects)
    assert [len(reason.splitlines()) for reason in rejects.reasons.values()] == [1]
    with pytest.raises(UsageError, match="how many samples it holds is not known") as error:
        find_shards("pipe:cat x.tar", Rejects())
    assert "data index" in (error.value.hint or "")
    with pytest.raises(InputError, match="cannot be read after sample 0"):
        list(samples_of("pipe:false x.tar"))


def test_without_the_library_its_package_is_named(write_shards: Write, monkeypatch: Any) -> None:
    path = write_shards([1])
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(UsageError, match="read by webdataset") as error:
        find_shards(path, Rejects())
    assert error.value.hint == "pip install webdataset"
