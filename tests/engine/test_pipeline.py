import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch

from omnimamba_cli.config import ModelConfig
from omnimamba_cli.engine import pipeline
from omnimamba_cli.engine.pipeline import Ahead, in_batches
from omnimamba_cli.errors import InputError


def doubled(rows: Sequence[tuple[int, int]]) -> list[int]:
    return [2 * value for _, value in rows]


def run(items: Iterator[int], *, size: int = 4, shapes: int = 3, steady: bool = False) -> list[int]:
    ahead = Ahead(items, lambda i: i, ahead=2 * size)
    try:
        return [
            int(result) for _, result in in_batches(ahead, lambda i, _: i % shapes, doubled, size=size, steady=steady)
        ]  # type: ignore[arg-type]
    finally:
        ahead.close()


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 100])
@pytest.mark.parametrize("steady", [True, False])
@pytest.mark.parametrize("shapes", [1, 3, 50])
def test_results_come_in_order_whatever_the_shapes(count: int, steady: bool, shapes: int) -> None:
    assert run(iter(range(count)), shapes=shapes, steady=steady) == [2 * i for i in range(count)]


def test_a_batch_holds_one_shape_and_is_filled_across_others() -> None:
    batches: list[list[int]] = []

    def note(rows: Sequence[tuple[int, int]]) -> list[int]:
        batches.append([value for _, value in rows])
        return doubled(rows)

    ahead = Ahead(range(24), lambda i: i, ahead=8)
    assert [r for _, r in in_batches(ahead, lambda i, _: i % 3, note, size=4, steady=True)] == [
        2 * i for i in range(24)
    ]
    assert all(len({value % 3 for value in batch}) == 1 for batch in batches)
    assert [len(batch) for batch in batches] == [4] * 6


def test_memory_does_not_grow_with_the_number_of_inputs() -> None:
    drawn = given = 0
    furthest = 0

    def names() -> Iterator[int]:
        nonlocal drawn
        while drawn < 100_000:
            drawn += 1
            yield drawn

    ahead = Ahead(names(), lambda i: i, ahead=16, threads=1)
    for given, (_, result) in enumerate(in_batches(ahead, lambda i, _: i % 2, doubled, size=8), 1):
        furthest = max(furthest, drawn - given)
        assert result == 2 * given
    assert given == drawn == 100_000
    assert furthest <= 16 + pipeline.WINDOW * 8 + 1


def test_what_cannot_be_read_is_given_in_its_place() -> None:
    def load(i: int) -> int:
        if i % 3 == 0:
            raise InputError(f"{i} is bad")
        time.sleep(0.001 * (7 - i % 7))  # later ones are ready earlier
        return i

    ahead = Ahead(range(20), load, ahead=8)
    found = [result for _, result in in_batches(ahead, lambda i, _: 0, doubled, size=4)]
    assert [str(r) if isinstance(r, InputError) else r for r in found] == [
        f"{i} is bad" if i % 3 == 0 else 2 * i for i in range(20)
    ]


def test_a_shape_that_cannot_be_is_given_in_its_place_too() -> None:
    def shape(i: int, _: int) -> int:
        if i == 1:
            raise InputError("too long")
        return 0

    ahead = Ahead(range(3), lambda i: i, ahead=8)
    assert [str(r) for _, r in in_batches(ahead, shape, doubled, size=4, steady=True)] == ["0", "too long", "4"]


@pytest.mark.parametrize("where", ["items", "load"])
def test_a_bug_is_raised_where_results_are_taken(where: str) -> None:
    def items() -> Iterator[int]:
        yield 0
        if where == "items":
            raise KeyError("x")

    def load(i: int) -> int:
        if where == "load":
            raise KeyError("x")
        return i

    ahead = Ahead(items(), load, ahead=8)
    with pytest.raises(KeyError):
        list(in_batches(ahead, lambda i, _: 0, doubled, size=4))


def test_what_is_there_is_run_without_waiting_for_more() -> None:
    more = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        assert more.wait(30)
        yield 2

    results = in_batches(Ahead(items(), lambda i: i, ahead=8), lambda i, _: 0, doubled, size=4)
    assert next(results) == (1, 2)  # while the source says nothing
    more.set()
    assert list(results) == [(2, 4)]


def test_reading_goes_on_while_the_model_works() -> None:
    read: list[int] = []
    ahead = Ahead(range(100), lambda i: read.append(i) or i, ahead=8)
    assert ahead.take(wait=True) is not None
    deadline = time.monotonic() + 30
    while len(read) < 9 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert sorted(read) == list(range(9))  # so many and no more
    ahead.close()


def test_threads_end_when_they_are_told_to() -> None:
    ahead = Ahead(range(1000), lambda i: i, ahead=8)
    assert ahead.take(wait=True) is not None
    ahead.close()
    for thread in ahead._threads:
        thread.join(30)
        assert not thread.is_alive()


def test_chunks_are_lists_of_what_is_there() -> None:
    ahead = Ahead(range(10), lambda i: i, ahead=20)
    found = [[slot.item for slot in chunk] for chunk in pipeline.chunks(ahead, most=4, steady=True)]
    assert found == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_batch_is_as_large_as_the_device_and_the_prefix_allow(tiny_config: ModelConfig) -> None:
    longer = replace(tiny_config, towers=(replace(tiny_config.towers[0], patches=729),), mmu_positions=1500)
    assert [pipeline.batch_size(tiny_config, device) for device in ("cpu", "cuda", "mps")] == [32, 64, 64]
    assert [pipeline.batch_size(longer, device) for device in ("cpu", "cuda")] == [1, 64]


def test_shares_of_a_batch_are_done_by_threads_of_their_own_in_order() -> None:
    together = threading.Barrier(2, timeout=30)
    parts: list[tuple[list[int], str, int]] = []

    def run(rows: Sequence[int]) -> list[int]:
        if rows[0] > 0:
            together.wait()  # one after the other would never come through
        parts.append((list(rows), threading.current_thread().name, torch.get_num_threads()))
        return [2 * row for row in rows]

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    shares = pipeline.Shares(2)
    try:
        assert shares(run, range(6)) == [0, 2, 4, 6, 8, 10]
        assert parts[0] == ([0], threading.current_thread().name, 2), "what is made once is made before the threads"
        assert sorted(rows for rows, _, _ in parts[1:]) == [[1, 2, 3], [4, 5]]
        assert {threads for _, _, threads in parts[1:]} == {1}
    finally:
        shares.close()
        torch.set_num_threads(before)


def test_what_goes_wrong_in_a_share_reaches_the_caller() -> None:
    def run(rows: Sequence[int]) -> list[int]:
        if 3 in rows:
            raise InputError("three")
        return list(rows)

    shares = pipeline.Shares(2)
    try:
        with pytest.raises(InputError, match="three"):
            shares(run, range(5))
        assert shares(run, [9]) == [9]
    finally:
        shares.close()


def test_only_a_small_model_on_a_cpu_is_shared(tiny_config: ModelConfig) -> None:
    longer = replace(tiny_config, towers=(replace(tiny_config.towers[0], patches=729),), mmu_positions=1500)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert [pipeline.shares(tiny_config, device).count for device in ("cpu", "cuda", "mps")] == [2, 1, 1]
        assert pipeline.shares(longer, "cpu").count == 1
    finally:
        torch.set_num_threads(before)
