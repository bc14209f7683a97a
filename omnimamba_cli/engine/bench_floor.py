"""The line that no cached Transformer can pass on a machine, as a row beside what was measured."""

import torch

from omnimamba_cli.config import ModelConfig
from omnimamba_cli.engine.bench_machine import Machine, Memory
from omnimamba_cli.engine.bench_opponents import LARGE, LLAMA_1B3, matched
from omnimamba_cli.engine.bench_rows import Row
from omnimamba_cli.engine.bench_systems import prefix_of
from omnimamba_cli.engine.bench_timing import Sample, Timing, integrate, sample_positions
from omnimamba_cli.engine.runtime import parameter_count

FLOOR = "transformer-floor"


def transformer_floor(machine: Machine, model: ModelConfig, dtype: torch.dtype, batch: int, length: int) -> Row:
    """What no cached Transformer of this size can pass: weights and cache, once a step, at the measured read rate."""
    large = parameter_count(model) > LARGE
    size = LLAMA_1B3 if large else matched(model)
    who = "JanusFlow's LLaMA-1.3B" if large else "a Transformer of this model's width and weights"
    prefix = prefix_of(model)
    weights = dtype.itemsize * size.step_weights
    per_token = dtype.itemsize * batch * size.kv_values

    def step_s(position: int) -> float:
        return (weights + per_token * position) / machine.read_bytes_per_s

    positions = sample_positions(prefix, length)
    total = integrate(positions, [step_s(p) for p in positions], prefix, length)
    nothing = Memory(None, None, None)
    return Row(
        task="text",
        system=FLOOR,
        opponent=True,
        what=f"the line that {who} cannot pass with a cache: bytes of weights and cache over the read rate",
        machine=machine,
        dtype=dtype,
        batch=batch,
        method="computed",
        seq_len=length,
        prefix=prefix,
        step_s=total / length,
        total_s=total,
        samples=tuple(Sample(p, Timing((step_s(p),), 0.0), nothing) for p in positions),
        tokens=batch * length,
        floor_s=total,
        work_s=total,
        weight_bytes=weights,
        context_bytes=per_token * (prefix + length - 1),
    )
