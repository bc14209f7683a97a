"""--dry-run of training: the plan, then two real steps and what they took. Writes nothing."""

import time
from collections.abc import Iterator

from torch import nn

from omnimamba_cli.engine.bench_machine import MemoryMeter, device_name, synchronize
from omnimamba_cli.engine.starting import StageSettings, Start
from omnimamba_cli.train.events import Event, Plan
from omnimamba_cli.train.loop import Loop
from omnimamba_cli.train.stages import JOINED, PARTS, part_of

STEPS = 2


def rehearse(loop: Loop, settings: StageSettings, start: Start) -> Iterator[Event]:
    """The plan with its parts, then two steps, then what they took."""
    modules = [start.model, *([start.towers] if start.towers is not None else [])]
    parts = part_table(modules)
    yield Plan(parts=parts, facts=_facts(loop, settings, parts))
    yield from measured(loop)


def part_table(modules: list[nn.Module]) -> list[tuple[str, int, int]]:
    """Each part of the model: name, number of parameters, how many of them train."""
    counts = {part: [0, 0] for part in (*PARTS, *JOINED)}
    for module in modules:
        for name, parameter in module.named_parameters():
            counts[part_of(name)][0] += parameter.numel()
            counts[part_of(name)][1] += parameter.numel() * parameter.requires_grad
    return [(part, whole, trained) for part, (whole, trained) in counts.items() if whole]


def state_bytes(parameters: int, trained: int, *, average: bool) -> dict[str, int]:
    """Memory that a run needs whatever its batch: float32 weights, gradients, AdamW's two moments, and the average."""
    held = {"weights_bytes": 4 * parameters, "gradients_bytes": 4 * trained, "optimizer_bytes": 8 * trained}
    if average:
        held["average_bytes"] = 4 * trained
    return {**held, "held_bytes": sum(held.values())}


def _facts(loop: Loop, settings: StageSettings, parts: list[tuple[str, int, int]]) -> dict[str, str | int | float]:
    c = loop.config
    whole, trained = sum(row[1] for row in parts), sum(row[2] for row in parts)
    batches = {"batch_mmu": settings.batch_mmu, "batch_t2i": settings.batch_t2i}
    return {
        "parameters": whole,
        "trained": trained,
        "steps": c.steps,
        "lr": c.lr,
        "warmup": c.warmup,
        **{name: rows for name, rows in batches.items() if name.removeprefix("batch_") in settings.tasks},
        "accumulate": c.accumulate,
        "processes": loop.accelerate.num_processes,
        "device": f"{loop.accelerate.device} ({device_name(loop.accelerate.device)})",
        "precision": {"no": "fp32"}.get(c.precision, c.precision),
        **state_bytes(whole, trained, average=bool(c.ema)),
    }


def measured(loop: Loop) -> Iterator[Event]:
    """Two steps, then what the second took (the first warms up) and the most memory that was in use."""
    meter = MemoryMeter(loop.accelerate.device)
    meter.reset()
    begun = time.perf_counter()
    for report in loop.try_out(STEPS):
        seconds, begun = time.perf_counter() - begun, time.perf_counter()
        yield report
    synchronize(loop.accelerate.device)
    facts: dict[str, str | int | float] = {
        "seconds_per_step": round(seconds, 3),
        "hours": round(seconds * loop.config.steps / 3600, 2),
    }
    peak = meter.read().main
    if peak is not None:
        facts["peak_bytes"] = peak
    yield Plan(parts=[], facts=facts)
