"""One variant of the paper's ablation with one seed: its stages, then what came of it. Used by ablations.py.

Variants in stages see the same samples in the same order, so that nothing but their switches differs; joint stages see
as many of each task.
"""

import gc
import json
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ablation_measure import measure
from ablation_plan import SLOWEST, VARIANTS, Plan, Variant, say, write_json
from omnimamba_cli.config import Task
from omnimamba_cli.engine import hub
from omnimamba_cli.engine.runtime import pick_device
from omnimamba_cli.engine.training import Finished, LoopConfig, Progress, StageSettings, pick_precision, train
from parallel import stopping

SEEDS_A_RUN = 10  # a stage has a seed of its own: with one, each would begin with the same samples
interrupted = False  # by a signal: this process begins no other run


def run(plan: Plan, name: str, seed: int) -> dict[str, Any] | None:
    """Train and measure a variant, from where an earlier call stopped; None where it was stopped before its end."""
    global interrupted
    folder = plan.out / "runs" / f"{name}-{seed}"
    record = folder / "result.json"
    if record.is_file():
        return dict(json.loads(record.read_text(encoding="utf-8")))
    try:
        return _run(plan, name, seed, folder, record)
    except KeyboardInterrupt:  # while it was measured
        interrupted = True
        return None


def _run(plan: Plan, name: str, seed: int, folder: Path, record: Path) -> dict[str, Any] | None:
    seconds = 0.0
    for stage, settings in stages(plan, VARIANTS[name], seed, folder):
        took = finish(stage, settings, plan.deadline, f"{name}-{seed}")
        if took is None:
            return None
        seconds += took
    if interrupted or stopping() or time.time() >= plan.deadline:
        return None
    measured = measure(plan, folder / "both", folder)
    result = {"variant": name, "seed": seed, "seconds": round(seconds, 2), **measured}
    write_json(record, result)
    for stage in ("t2i", "mmu"):  # what the last stage started from
        shutil.rmtree(folder / stage, ignore_errors=True)
    say(f"{name}-{seed}: naming {result['naming']:.1%}, drawing loss {result['drawing_loss']:.3f}")
    return result


def stages(plan: Plan, variant: Variant, seed: int, folder: Path) -> list[tuple[str, StageSettings]]:
    """The stages of a variant, all by the recipe of nano: a fresh backbone opens in the first of them.

    With s steps of stage 1 for each task and n of both together, each task has seen s + n batches, as it has after
    s + n joint steps.
    """
    first = min(max(1, round(plan.options.stage1_share * plan.steps)), plan.steps - 1)
    made = {"vocabulary": variant.vocabulary, "lora": variant.lora}
    seeds = range(SEEDS_A_RUN * seed, SEEDS_A_RUN * (seed + 1))
    if variant.joint:
        fresh = {"init": plan.options.preset, **made}
        return [("both", _settings(plan, None, folder / "both", seeds[0], plan.steps, **fresh))]
    t2i = {"init": plan.options.preset, "unfreeze": ("backbone",), **made}
    mmu = {"init": str(folder / "t2i"), "unfreeze": ("text_embedding", "mmu_positions")}
    both = {"init": str(folder / "mmu")}
    return [
        ("t2i", _settings(plan, "t2i", folder / "t2i", seeds[0], first, **t2i)),
        ("mmu", _settings(plan, "mmu", folder / "mmu", seeds[0], first, **mmu)),
        ("both", _settings(plan, None, folder / "both", seeds[1], plan.steps - first, **both)),
    ]


def _settings(plan: Plan, task: Task | None, output: Path, seed: int, steps: int, **changes: Any) -> StageSettings:
    options, files = plan.options, plan.files
    config = LoopConfig(
        steps=steps,
        lr=options.lr,
        warmup=max(1, steps // 20),
        ema=options.ema,
        precision=pick_precision("auto", pick_device(plan.device)[0]),
        seed=seed,
        log_every=max(1, steps // 10),
        save_minutes=2.0,
        keep=1,
    )
    return StageSettings(
        stage=2 if task is None else 1,
        task=task,
        output=output,
        loop=config,
        tokenizer=files.tokenizer,
        vision=files.vision,
        vq=files.vq,
        data_mmu=(files.talks,),
        data_t2i=(files.codes,),
        batch_mmu=options.batch_mmu,
        batch_t2i=options.batch_t2i,
        workers=plan.workers,
        device=plan.device,
        resume=True,
        **changes,
    )


def finish(stage: str, settings: StageSettings, deadline: float, label: str) -> float | None:
    """Run a stage to its end; the seconds it trained, all calls together. None where it had to stop."""
    global interrupted
    done = settings.output.with_suffix(".json")
    if done.is_file():
        return float(json.loads(done.read_text(encoding="utf-8"))["seconds"])
    left = (deadline - time.time()) / 60
    if interrupted or stopping() or left <= 0:
        return None
    if left != float("inf"):
        settings = replace(settings, loop=replace(settings.loop, max_minutes=round(left, 2) or 0.01))
    seconds = 0.0
    for event in train(settings):
        if isinstance(event, Progress):
            seconds = event.seconds
            say(f"{label} {stage}: step {event.step:,} of {event.steps:,}, loss {event.values['loss']:.3f}")
        elif isinstance(event, Finished) and not event.complete:
            say(f"{label} {stage}: {event.reason}")
            interrupted = interrupted or event.reason.startswith("stopped by")
            return None
    if seconds == 0.0:  # stopped between its last step and its record
        seconds = _recorded_seconds(settings.output)
    write_json(done, {"seconds": seconds, "steps": settings.loop.steps})
    shutil.rmtree(settings.output / "snapshots", ignore_errors=True)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return seconds


def _recorded_seconds(output: Path) -> float:
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return float(json.loads(lines[-1])["seconds"])


@dataclass(frozen=True)
class Probe:
    """How long things take here."""

    step_s: float  # of both tasks
    start_s: float  # of a stage
    measuring_s: float

    def run_s(self, steps: int) -> float:
        """Of a whole run, by these figures; single-task steps add up to joint ones."""
        return steps * self.step_s + 3 * self.start_s + self.measuring_s

    def to_dict(self) -> dict[str, float]:
        """Plain data."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


def probe(plan: Plan, steps: int = 12) -> Probe:
    """Train the slowest variant for a few steps and measure a model, then throw away what came of it."""
    folder = plan.out / "probe"
    shutil.rmtree(folder, ignore_errors=True)
    variant = replace(VARIANTS[SLOWEST], joint=True)
    ((_, settings),) = stages(replace(plan, steps=steps), variant, 0, folder)
    settings = replace(settings, resume=False, force=True)
    settings = replace(settings, loop=replace(settings.loop, log_every=max(1, steps // 4)))
    for _ in range(2):  # the first time compiles kernels and fills caches
        begun = time.monotonic()
        reports = [event for event in train(settings) if isinstance(event, Progress)]
        whole = time.monotonic() - begun
    step_s = (reports[-1].seconds - reports[0].seconds) / (reports[-1].step - reports[0].step)
    # an untrained model does not know when an answer ends
    trained = dict(hub.installed()).get(plan.options.preset, settings.output)
    measured = measure(plan, trained, folder)
    shutil.rmtree(folder)
    return Probe(step_s, max(0.0, whole - steps * step_s), measured["measuring_seconds"])
