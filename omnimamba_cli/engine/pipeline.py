"""Many inputs through one model: read ahead in threads, run in batches of one shape, results given in order.

Memory does not grow with the number of inputs: only so many are read early, only so many wait for a full batch.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from omnimamba_cli.config import ModelConfig
from omnimamba_cli.errors import InputError

NAME = "omnimamba-ahead"
PATIENCE_S = 0.5  # how long to wait for threads that were told to end

T = TypeVar("T")  # an input, such as a name
R = TypeVar("R")  # what is read of it, such as a picture
A = TypeVar("A")  # what the model makes of that

THREADS = 4  # that read inputs; more than two cores need, since some wait for a network
CPU_TOKENS = 1024  # of all prefixes in a batch; more leave the caches, and delay the first answer
CUDA_TOKENS = 65_536
MOST = {"cpu": 32, "cuda": 64}  # rows
WINDOW = 4  # batches' worth of inputs that may wait for others of their shape
SHARES = 8  # threads of Shares at most; more would wait for Python's lock


@dataclass
class Slot(Generic[T, R]):
    """One input on its way: `value` or `error` is set when it is done."""

    item: T
    value: R | None = None
    error: BaseException | None = None
    done: bool = False


class Ahead(Generic[T, R]):
    """Inputs in order, each loaded by `load` in one of some threads, at most `ahead` of them in advance.

    The iterator of inputs is advanced in a thread too, so that it may be slow (a pipe that is still written to).
    A thread that waits for a pipe cannot be told to stop: see `threads_are_left`.
    """

    def __init__(self, items: Iterable[T], load: Callable[[T], R], *, ahead: int, threads: int = THREADS) -> None:
        self._items, self._load, self._most = items, load, ahead
        self._slots: deque[Slot[T, R]] = deque()
        self._todo: deque[Slot[T, R]] = deque()
        self._changed = threading.Condition()
        self._complete = self._closed = False
        self._threads = [
            threading.Thread(target=target, daemon=True, name=NAME) for target in (self._feed, *[self._work] * threads)
        ]
        for thread in self._threads:
            thread.start()

    def take(self, *, wait: bool) -> Slot[T, R] | None:
        """The next input, loaded; None when there is no more, or without `wait` when it is not loaded yet."""
        with self._changed:
            while not (self._slots and self._slots[0].done):
                if not wait or (self._complete and not self._slots):
                    return None
                self._changed.wait()
            self._changed.notify_all()
            return self._slots.popleft()

    @property
    def empty(self) -> bool:
        """Whether every input has been taken."""
        with self._changed:
            return self._complete and not self._slots

    def close(self) -> None:
        """Tell the threads to end after their present input, and wait for them a moment."""
        with self._changed:
            self._closed = True
            self._todo.clear()
            self._changed.notify_all()
        until = time.monotonic() + PATIENCE_S
        for thread in self._threads[1:]:  # the first may wait for a pipe
            thread.join(max(0.0, until - time.monotonic()))

    def _feed(self) -> None:
        last: Slot[T, R] | None = None
        try:
            for item in self._items:
                with self._changed:
                    self._changed.wait_for(lambda: len(self._slots) < self._most or self._closed)
                    if self._closed:
                        return
                    slot: Slot[T, R] = Slot(item)
                    self._slots.append(slot)
                    self._todo.append(slot)
                    self._changed.notify_all()
        except Exception as error:  # whatever it is, it belongs to who takes the inputs
            last = Slot(None, error=error, done=True)  # type: ignore[arg-type]  # there is no input any more
        with self._changed:
            if last is not None:
                self._slots.append(last)
            self._complete = True
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._todo or self._closed or self._complete)
                if not self._todo:
                    if self._closed or self._complete:
                        return
                    continue
                slot = self._todo.popleft()
            try:
                slot.value = self._load(slot.item)
            except BaseException as error:  # the taker raises it
                slot.error = error
            with self._changed:
                slot.done = True
                self._changed.notify_all()


def threads_are_left() -> bool:
    """Whether a thread still waits for an input; the process must then end without waiting for it."""
    return any(thread.name == NAME for thread in threading.enumerate())


def in_batches(
    ahead: Ahead[T, R],
    shape: Callable[[T, R], Hashable],
    run: Callable[[Sequence[tuple[T, R]]], Sequence[A]],
    *,
    size: int,
    steady: bool = False,
) -> Iterator[tuple[T, A | InputError]]:
    """Every input in order, with its result, or with the InputError of loading it or finding its shape.

    Inputs of one shape are run together, at most `size`. What is loaded is run at once, so that a slow source delays no
    result; with `steady` batches are filled first, so that they do not depend on timing.
    """
    waiting: dict[Hashable, list[tuple[int, T, R]]] = {}
    done: dict[int, tuple[T, A | InputError]] = {}
    taken = given = 0
    while not ahead.empty or waiting:
        while taken - given < WINDOW * size and not any(len(rows) == size for rows in waiting.values()):
            slot = ahead.take(wait=steady or not (waiting or done))
            if slot is None:
                break
            try:
                if slot.error is not None:
                    raise slot.error
                value: R = slot.value  # type: ignore[assignment]  # there is a value where there is no error
                waiting.setdefault(shape(slot.item, value), []).append((taken, slot.item, value))
            except InputError as error:
                done[taken] = slot.item, error
            taken += 1
        while given in done:
            yield done.pop(given)
            given += 1
        if not waiting:
            continue
        # a full batch, else the one that the next result waits for
        chosen = max(waiting, key=lambda key: (len(waiting[key]) == size, -waiting[key][0][0]))
        rows = waiting.pop(chosen)
        results = run([(item, value) for _, item, value in rows])
        for (index, item, _), result in zip(rows, results, strict=True):
            done[index] = item, result
        while given in done:
            yield done.pop(given)
            given += 1


def chunks(ahead: Ahead[T, R], *, most: int, steady: bool = False) -> Iterator[list[Slot[T, R]]]:
    """All inputs in order, in lists of what is loaded, at most `most`; with `steady` lists are filled up to `most`."""
    while True:
        found: list[Slot[T, R]] = []
        while len(found) < most and (slot := ahead.take(wait=steady or not found)) is not None:
            found.append(slot)
        if not found:
            return
        yield found


class Shares:
    """Threads that each run a share of a batch on a CPU, each on processors of its own.

    A small model's operations are too small to be divided among processors. On two cores, two halves of a batch side by
    side take two thirds of the time that they take one after the other.
    """

    def __init__(self, count: int) -> None:
        import torch  # the model is there by now, and with it torch

        self.count, self._pool = count, None
        if count > 1:
            alone = partial(torch.set_num_threads, max(1, torch.get_num_threads() // count))  # of the calling thread
            self._pool = ThreadPoolExecutor(count, initializer=alone)
        self._begun = False

    def __call__(self, run: Callable[[Sequence[T]], Sequence[A]], rows: Sequence[T]) -> list[A]:
        """run(rows), in parts at the same time; the very first row runs alone, since the model prepares itself then."""
        done: list[A] = []
        if not self._begun and self._pool is not None:
            done, rows = list(run(rows[:1])), rows[1:]
        self._begun = True
        if self._pool is None or len(rows) < 2:
            return done + (list(run(rows)) if rows else [])
        each = -(-len(rows) // self.count)
        parts = [rows[start : start + each] for start in range(0, len(rows), each)]
        return done + [result for part in self._pool.map(run, parts) for result in part]

    def close(self) -> None:
        """Start no more work; what is running ends by itself."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


def shares(config: ModelConfig, device: str) -> Shares:
    """A share for each thread with a small model on a CPU; else one, since larger products use all processors."""
    import torch

    small = device == "cpu" and batch_size(config, device) > 1
    return Shares(min(SHARES, torch.get_num_threads()) if small else 1)


def batch_size(config: ModelConfig, device: str) -> int:
    """How many pictures are looked at together on a kind of device ("cpu", "cuda", "mps")."""
    kind = "cpu" if device == "cpu" else "cuda"
    tokens = CPU_TOKENS if kind == "cpu" else CUDA_TOKENS
    return max(1, min(MOST[kind], tokens // (config.patches + 16)))  # 16: about a question
