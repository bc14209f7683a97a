"""What every measurement needs: a random 1.3B model made on the device, graphs timed by events, one line a result."""

import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from omnimamba_cli.config import ModelConfig, Task
from omnimamba_cli.engine.recording import Recording
from omnimamba_cli.engine.storage import is_float32
from omnimamba_cli.model.lora import merge
from omnimamba_cli.model.omnimamba import OmniMamba
from omnimamba_cli.presets import preset

BYTES_PER_SECOND = 3.04e12  # what an H100 reads, measured; the floor of everything here
POSITIONS = 17_000  # the tables are extended for long prefills


class Log:
    """Results as a table on stdout and as JSON lines in a file; a step that fails is a line, too."""

    def __init__(self, path: Path | None, seconds: float = 1e9) -> None:
        self.seconds = seconds  # after these nothing new is begun
        self.file = path.open("w", encoding="utf-8") if path else None
        self.start = time.perf_counter()
        self.failed = 0

    def line(self, text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def result(self, name: str, microseconds: float, nbytes: float = 0.0, **facts: object) -> None:
        """One timing; nbytes is what cannot but be read and written."""
        floor = nbytes / BYTES_PER_SECOND * 1e6
        row = {"name": name, "us": round(microseconds, 2), "floor_us": round(floor, 2), **facts}
        rate = f"{nbytes / microseconds / 1e3:7.0f} GB/s  floor {floor:8.1f} us" if nbytes else ""
        more = "  ".join(f"{k} {v}" for k, v in facts.items())
        self.line(f"{name:52} {microseconds:10.1f} us  {rate}  {more}")
        self.fact(**row)

    def fact(self, **row: object) -> None:
        if self.file:
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()

    def attempt(self, name: str, work: Callable[[], object]) -> None:
        """Run one part; what goes wrong in it stops nothing else."""
        began = time.perf_counter()
        if began - self.start > self.seconds:
            self.line(f"SKIPPED {name}: {self.seconds:.0f} s are over")
            return
        try:
            with torch.inference_mode():
                work()
        except Exception as error:  # any: the parts after this one are wanted still
            self.failed += 1
            last = "".join(traceback.format_exception(error)[-3:]).strip()
            self.line(f"FAILED {name}: {last}")
            self.fact(name=name, error=last)
        taken, total = time.perf_counter() - began, time.perf_counter() - self.start
        self.line(f"-- {name}: {taken:.1f} s, {total:.0f} s so far")
        torch.cuda.empty_cache()


def random_model(task: Task, *, dtype: torch.dtype = torch.bfloat16) -> OmniMamba:
    """The 1.3B model with random weights, merged for a task, made on the device."""
    config = preset("1.3b")
    long = replace(config, t2i_positions=config.t2i_positions, mmu_positions=POSITIONS)
    torch.set_default_dtype(dtype)
    try:
        with torch.device("cuda"):
            torch.manual_seed(0)
            model = OmniMamba(long).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    for name, p in model.named_parameters():
        if is_float32(name):
            p.data = p.data.float()
    for layer in model.layers:
        nn.init.normal_(layer.mixer.in_proj.weight, std=0.02)
    return merge(model, task)


def seconds_each(work: Callable[[], object], *, repeats: int = 5, calls: int = 1) -> float:
    """Median seconds of one call on the device, after a warm-up."""
    work()
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / calls)
    return statistics.median(times)


def compile_together(works: Sequence[Callable[[], object]]) -> None:
    """Call everything once, several at a time: compiling is what takes long, and it leaves Python's lock alone."""

    def quiet(work: Callable[[], object]) -> None:
        with suppress(Exception):  # it will fail again, and be heard, where it is timed
            work()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(quiet, works))
    torch.cuda.synchronize()


def recorded_us(work: Callable[[], object], *, repeats: int = 5, calls: int = 3) -> float:
    """Median microseconds of work that is recorded as a graph."""
    return seconds_each(Recording(work, torch.device("cuda")), repeats=repeats, calls=calls) * 1e6


def peak_gib() -> float:
    """The allocator's peak since it was last reset."""
    return round(torch.cuda.max_memory_allocated() / 2**30, 2)


def sizes(config: ModelConfig) -> tuple[int, int, int]:
    """(d_model, d_inner, d_in_proj)."""
    c = config.backbone
    return c.d_model, c.d_inner, c.d_in_proj
