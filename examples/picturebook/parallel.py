"""Work in several processes, each with a GPU of its own. Imports nothing heavy: what it is given to run does."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
Submit = Callable[..., "Future[Any]"]  # a function and its arguments
_stop: Any = None  # of a process of a pool: a multiprocessing event


@contextmanager
def submitting(processes: int, gpus: Sequence[str]) -> Iterator[Submit]:
    """A function that runs another in one of the processes, each with a GPU of its own, in turn; or here, if only one.

    Kernels are compiled once a process, whatever number of runs it is given.
    """
    if processes == 1 and len(gpus) < 2:
        yield _here
        return
    context = multiprocessing.get_context("spawn")  # a fork would not survive CUDA
    places = context.Queue()
    for number in range(processes):
        places.put(gpus[number % len(gpus)] if gpus else "")
    if not gpus:  # read by the new processes before they import torch
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    stop = context.Event()
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_take_place, initargs=(places, stop))
    try:
        yield pool.submit
    except BaseException:
        stop.set()  # work that did not feel Ctrl-C itself asks `stopping`
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _take_place(places: Any, stop: Any) -> None:  # Any: a multiprocessing queue and event
    """Of a new process, before it touches a GPU."""
    global _stop
    os.environ["CUDA_VISIBLE_DEVICES"] = places.get()
    _stop = stop


def stopping() -> bool:
    """Whether the process that gave this one its work wants no more of it."""
    return _stop is not None and _stop.is_set()


def _here(work: Callable[..., T], *args: Any) -> "Future[T]":
    future: Future[T] = Future()
    try:
        future.set_result(work(*args))
    except Exception as error:
        future.set_exception(error)
    return future
