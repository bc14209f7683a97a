"""Measures the paper's stage-2 step: both tasks with the image encoders, by the training loop itself.

The data are random and of full length: every picture has the longest text, every drawing all of its codes.
"""

import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from omnimamba_cli.config import ModelConfig, Task
from omnimamba_cli.data.batches import Collate, DrawBatch, TalkBatch
from omnimamba_cli.data.talks import Talk
from omnimamba_cli.engine import hub
from omnimamba_cli.engine.bench_machine import Machine, MemoryMeter, measure_machine
from omnimamba_cli.engine.bench_rows import Row
from omnimamba_cli.engine.bench_systems import random_ids, random_module
from omnimamba_cli.engine.bench_timing import time_whole
from omnimamba_cli.engine.checkpoint import load_directory
from omnimamba_cli.engine.training import PrecisionChoice, pick_precision
from omnimamba_cli.model.meta import on_meta
from omnimamba_cli.model.omnimamba import OmniMamba
from omnimamba_cli.model.vision import VisionTowers
from omnimamba_cli.ops import registry
from omnimamba_cli.presets import PRESETS
from omnimamba_cli.train.events import Event as TrainEvent
from omnimamba_cli.train.language import Objective, TaskBatches
from omnimamba_cli.train.loop import Loop
from omnimamba_cli.train.loop_config import LoopConfig, accelerator
from omnimamba_cli.train.optimiser import Average
from omnimamba_cli.train.stages import freeze, recipe

PAPER_ROWS: dict[Task, int] = {"mmu": 3, "t2i": 48}  # of one of the paper's eight GPUs
CPU_ROWS: dict[Task, int] = {"mmu": 1, "t2i": 2}
TOGETHER = 4  # steps that are timed at once: the loop waits for the device only when it reports
# dense 16-bit operations a second, as the makers state them; the first name that the device's name contains
PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2_250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


@dataclass(frozen=True, kw_only=True)
class Stage2Bench:
    """What to measure."""

    model: str
    device: str = "auto"
    dtype: PrecisionChoice = "auto"
    rows_mmu: int | None = None  # None: the paper's for one GPU, on a CPU few
    rows_t2i: int | None = None
    checkpoint_activations: bool = False
    budget_s: float = 600.0


class FixedBatch:
    """A job for the loop that has one batch, over and over."""

    def __init__(self, module: Objective, batch: TaskBatches) -> None:
        self.module, self.batch = module, batch

    def batches(self, step: int) -> Iterator[Sequence[TaskBatches]]:
        """See Job."""
        while True:
            yield [self.batch]

    def totals(self, micros: Sequence[TaskBatches]) -> dict[str, int]:
        """See Job."""
        return {task: batch.count for task, batch in micros[0].by_task.items()}

    def after_step(self, step: int, progress: float, average: Average) -> list[TrainEvent]:
        """See Job."""
        return []

    def report(self) -> dict[str, float]:
        """See Job."""
        return {}


def machine_of(bench: Stage2Bench, device: torch.device) -> Machine:
    """The machine, measured in the number format of the forward pass."""
    precision = pick_precision(bench.dtype, device)
    return measure_machine(device, {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32))


def rows_of(bench: Stage2Bench, device: torch.device) -> dict[Task, int]:
    """Rows of each task."""
    usual = CPU_ROWS if device.type == "cpu" else PAPER_ROWS
    given = {"mmu": bench.rows_mmu, "t2i": bench.rows_t2i}
    return {t: n if (n := given[t]) is not None else usual[t] for t in usual}


def described(bench: Stage2Bench, c: ModelConfig, rows: dict[Task, int]) -> str:
    """What is measured, in words."""
    t2i = f"{rows['t2i']} drawings of {c.t2i_prefix + c.vq.codes} tokens"
    mmu = f"{rows['mmu']} {'picture' if rows['mmu'] == 1 else 'pictures'} with {c.max_text_tokens} tokens of text"
    said = f"stage 2 by the training loop: {t2i} and {mmu}, image encoders, clipping and AdamW included"
    more = ["activations computed again"] if bench.checkpoint_activations else []
    return "; ".join([said, *more, *(["random weights"] if bench.model in PRESETS else [])])


def held_bytes(config: ModelConfig) -> int:
    """What a step holds whatever its rows: weights with a gradient and two moments each, image encoders alone."""
    trained, frozen = on_meta(lambda: OmniMamba(config)), on_meta(lambda: VisionTowers(config.towers))
    return 16 * sum(p.numel() for p in trained.parameters()) + 4 * sum(p.numel() for p in frozen.parameters())


class Stage2:
    """Model, towers, optimizer and one batch on the device. Raises what Session raises for a model."""

    def __init__(self, bench: Stage2Bench, machine: Machine) -> None:
        begun = time.perf_counter()
        self.bench, self.machine = bench, machine
        device = machine.device
        self.rows = rows_of(bench, device)
        model, towers = _modules(bench.model, device)
        self.config = model.config
        freeze(model, towers, 2, None)
        objective = Objective(model, towers, {"mmu": 1.0, "t2i": 1.0}, recompute=bench.checkpoint_activations)
        self.batch = batch_of(self.config, self.rows, device)
        self.flops = step_flops(objective, self.batch)
        row = recipe(2, None)
        loop = LoopConfig(steps=row.steps, lr=row.lr, precision=pick_precision(bench.dtype, device))
        job = FixedBatch(objective.to(device).train(), self.batch)
        # nothing is written: steps are taken, not run
        self.loop = Loop(job, loop, accelerator(device, loop.precision), Path())
        self.built_s = time.perf_counter() - begun

    def measure(self) -> Row:
        """The row. Raises what the device raises when memory runs out."""
        device, meter = self.machine.device, MemoryMeter(self.machine.device)
        meter.reset()
        micros = [self.batch]
        together = 1 if device.type == "cpu" else TOGETHER
        timing = time_whole(lambda: self.loop.take_step(micros), device, self.bench.budget_s, together=together)
        peak = peak_of(self.machine)
        notes = [
            f"{self.flops:.3g} operations a step: the matrices alone, three passes, image encoders one; the scan and "
            "what is computed again for the gradient are not counted",
            f"MFU is of {'the data sheet' if peak else 'the measured matrix product'}: "
            f"{(peak or self.machine.flops_per_s) / 1e12:,.3g} TFLOP/s",
        ]
        return Row(
            task="stage2",
            system=self.config.name,
            opponent=False,
            what=self.what(),
            machine=self.machine,
            dtype=self.machine.dtype,
            batch=sum(self.rows.values()),
            method="repeated",
            total_s=timing.median,
            steps=timing,
            tokens=self.batch.tokens,
            floor_s=self.flops / self.machine.flops_per_s,
            work_s=timing.median,
            mfu=self.flops / timing.median / (peak or self.machine.flops_per_s),
            memory=meter.read(),
            build_s=self.built_s,
            # no step of decoding is taken
            kernels={c.op: c.backend for c in registry.report(device) if c.chosen and c.op not in ("row_step", "int8")},
            notes=tuple(
                notes if timing.warmup_s else [*notes, "the one step is also the warm-up: no time for another"]
            ),
        )

    def what(self) -> str:
        """What is measured, in words."""
        return described(self.bench, self.config, self.rows)

    def in_less_memory(self) -> str | None:
        """The next command to try in less memory: with activations computed again, or else with half of the rows."""
        rows = self.rows
        if self.bench.checkpoint_activations:
            rows = {task: (number + 1) // 2 for task, number in rows.items()}
            if rows == self.rows:  # one of each
                return None
        words = ["omnimamba", "bench", "--task", "stage2", "-m", self.bench.model, "--checkpoint-activations"]
        for task, number in rows.items():
            words += [f"--rows-{task}", str(number)]
        for option, value in (("--device", self.bench.device), ("--dtype", self.bench.dtype)):
            words += [option, value] if value != "auto" else []
        return shlex.join(words)


def _modules(name: str, device: torch.device) -> tuple[OmniMamba, VisionTowers | None]:
    """A preset with random weights, or a model directory, in float32 as they are trained."""
    if name in PRESETS:
        config = PRESETS[name]
        model = random_module(lambda: OmniMamba(config), device, torch.float32)
        return model, random_module(lambda: VisionTowers(config.towers), device, torch.float32)
    files = load_directory(hub.resolve(name), device=device, dtype=torch.float32, parts=("model", "vision"))
    assert files.model is not None
    for parameter in files.model.parameters():
        parameter.data = parameter.data.clone()  # not the mapped file
    return files.model, files.towers


def batch_of(config: ModelConfig, rows: dict[Task, int], device: torch.device) -> TaskBatches:
    """Random rows of full length; a task without rows is left out."""
    by_task: dict[Task, TalkBatch | DrawBatch] = {}
    cpu, vocabulary = torch.device("cpu"), config.text.base_vocab_size
    if rows["t2i"]:
        prefix = random_ids(rows["t2i"], config.t2i_prefix, vocabulary, cpu).int()
        codes = random_ids(rows["t2i"], config.vq.codes, config.vq.codebook_size, cpu).int()
        by_task["t2i"] = DrawBatch(prefix, codes).to(device)
    if rows["mmu"]:
        size, text = config.vision_image_size, config.max_text_tokens
        pixels = torch.randint(256, (rows["mmu"], 3, size, size), dtype=torch.uint8)
        ids = random_ids(rows["mmu"], text, vocabulary, cpu).tolist()
        talks = [Talk(pixels[i], ids[i], [True] * text) for i in range(rows["mmu"])]
        by_task["mmu"] = Collate(config)(talks).to(device)
    return TaskBatches(by_task)


def step_flops(objective: Objective, batch: TaskBatches) -> float:
    """Operations of a step's matrix products: for each weight and token two forward, six with gradients."""
    model, config = objective.model, objective.model.config
    d = config.backbone.d_model

    def weights(module: nn.Module) -> int:
        return sum(number for _, number in named_weights(module))

    pairs = sum(number for name, number in named_weights(model.layers) if ".lora." in name)
    layers = weights(model.layers) - pairs // 2  # each task runs through one of the two pairs
    trained = frozen = 0.0
    for rows in batch.by_task.values():
        if isinstance(rows, DrawBatch):
            fed = rows.prefix.numel() + rows.codes[:, :-1].numel()
            trained += fed * layers + rows.prefix.numel() * weights(model.caption_mlp)
            trained += min(rows.codes.numel(), config.vq.codebook_size) * weights(model.image_mlp)
            trained += rows.codes.numel() * d * config.vq.codebook_size
        else:
            pictures, seen = len(rows.pixels), len(rows.pixels) * config.patches
            trained += (pictures * rows.length * layers) + seen * weights(model.projector)
            trained += rows.count * d * config.text.vocab_size
            if objective.towers is not None:
                frozen += tower_weights_per_picture(objective.towers, config) * pictures
    return 6 * trained + 2 * frozen


def named_weights(module: nn.Module) -> list[tuple[str, int]]:
    """Name and size of every matrix and table."""
    return [(name, p.numel()) for name, p in module.named_parameters() if p.ndim > 1]


def tower_weights_per_picture(towers: VisionTowers, config: ModelConfig) -> float:
    """Multiplications of the encoders for one picture; roughly for a convolutional one, as if all ran on patches."""
    return float(config.patches * sum(number for _, number in named_weights(towers)))


def peak_of(machine: Machine) -> float | None:
    """The maker's 16-bit peak, operations a second; None for another number format or an unknown device."""
    if machine.dtype not in (torch.bfloat16, torch.float16):
        return None
    return next((peak for name, peak in PEAKS.items() if name in machine.name), None)
