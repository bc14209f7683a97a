"""Timing steps at sampled positions, and the time of a whole sequence from these."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from omnimamba_cli.engine.bench_machine import Memory, median_and_spread, synchronize

BLOCKS = 5  # repetitions of a measurement
BLOCK_SECONDS = 0.06  # of work in one, so that starting and stopping the clock does not count
MOST_STEPS = 64  # in one block
WARMUP_SECONDS = 0.3


@dataclass(frozen=True)
class Timing:
    """Seconds of one repetition each, warm-up apart."""

    seconds: tuple[float, ...]
    warmup_s: float

    @property
    def median(self) -> float:
        """Median of the repetitions, in seconds."""
        return median_and_spread(self.seconds)[0]

    @property
    def spread(self) -> float:
        """Distance between the quartiles, in seconds."""
        return median_and_spread(self.seconds)[1]


@dataclass(frozen=True)
class Sample:
    """One step at one position: what it takes and the peak memory while it ran."""

    position: int  # tokens before it
    timing: Timing
    memory: Memory


def sample_positions(start: int, count: int, samples: int = 5) -> list[int]:
    """Evenly spaced positions of `count` tokens from `start` on, the first and the last among them."""
    if count <= samples:
        return list(range(start, start + count))
    return [start + round(i * (count - 1) / (samples - 1)) for i in range(samples)]


def integrate(positions: Sequence[int], seconds: Sequence[float], start: int, count: int) -> float:
    """The sum over `count` positions from `start` of what was measured at a few, linear between them.

    Exact for a cost that is linear in the position; too high by 1.6 % at most for a quadratic one and five samples.
    """
    every = np.arange(start, start + count)
    return float(np.interp(every, positions, seconds).sum())


def time_steps(steps: Iterator[object], device: torch.device, budget_s: float) -> Timing:
    """Time blocks of steps, with the device idle before and after each; fewer and shorter blocks when time is short.

    Takes MOST_STEPS * (BLOCKS + 1) steps at most. The first are warm-up, unless one alone takes the time there is.
    """
    begun = time.perf_counter()
    synchronize(device)
    one = _block(steps, 1, device)
    if 2 * one > budget_s:
        return Timing((one,), 0.0)
    size = 1 if device.type == "cpu" or one > BLOCK_SECONDS else 8
    for _ in range(MOST_STEPS // size - 1):
        one = _block(steps, size, device)
        if time.perf_counter() - begun > min(WARMUP_SECONDS, budget_s / 4):
            break
    warmup = time.perf_counter() - begun
    block = max(1, min(MOST_STEPS, round(BLOCK_SECONDS / max(one, 1e-9))))
    measured: list[float] = []
    while len(measured) < BLOCKS:
        measured.append(_block(steps, block, device))
        if time.perf_counter() - begun + block * measured[-1] > budget_s:
            break
    return Timing(tuple(measured), warmup)


def _block(steps: Iterator[object], count: int, device: torch.device) -> float:
    """Seconds a step over `count` of them."""
    start = time.perf_counter()
    for _ in range(count):
        next(steps)
    synchronize(device)
    return (time.perf_counter() - start) / count


def time_whole(work: Callable[[], object], device: torch.device, budget_s: float, *, together: int = 1) -> Timing:
    """Time repetitions of one piece of work; the first is warm-up, or the only one when it takes all the time.

    `together` of them are timed at once, where nothing waits for the device between two, as in a training loop.
    """

    def endless() -> Iterator[None]:
        while True:
            work()
            yield

    steps = endless()
    first = _block(steps, 1, device)
    if 2 * first > budget_s:
        return Timing((first,), 0.0)
    measured: list[float] = []
    while len(measured) < BLOCKS and (not measured or first + together * (sum(measured) + measured[-1]) < budget_s):
        measured.append(_block(steps, together, device))
    return Timing(tuple(measured), first)
