"""The paper's ablation (its Table 4) on PictureBook at nano's size: equal budgets, several seeds, one table.

Run: python examples/picturebook/ablations.py DATA OUT --seeds 3 (--minutes M | --steps N)

Run it again to go on: every run that is done is kept, and one that was stopped continues where it was. DATA holds the
picture sets (see make.py); OUT gets the data, runs/, results.json and table.md, which is also written to stdout.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, as_completed
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch

import ablation_runs
import ablation_table
from ablation_data import prepare
from ablation_plan import VARIANTS, Options, Plan, say, write_json
from ablation_runs import Probe
from omnimamba_cli.errors import ExitCode, OmniMambaError, UsageError
from parallel import submitting

PLAN_FILE, PROBE_FILE = "plan.json", "probe.json"
SHARE = 0.9  # of the minutes that is planned with: runs beside one another are slower than a probe alone
FEWEST_STEPS = 10


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant (default 3)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME",
                        help=f"default: {' '.join(VARIANTS)}")  # fmt: skip
    parser.add_argument("--steps", type=int, help="budget of each run: so many batches of both tasks")
    parser.add_argument("--minutes", type=float, help="budget of everything but the data; equal steps follow from it")
    parser.add_argument("--stop-minutes", type=float, help="save and stop after this; the same command goes on")
    parser.add_argument("--processes", type=int, help="runs at a time (default: one a GPU)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--workers", type=int, help="processes a run that read pictures (default: all cores but the "
                        "runs' own; 0 on a CPU)")  # fmt: skip
    parser.add_argument("--batch-t2i", type=int, default=704, help="half of nano's: twice as many steps in the time")
    parser.add_argument("--batch-mmu", type=int, default=144)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--ema", type=float, default=0.99)
    parser.add_argument("--stage1-share", type=float, default=0.2, help="of the steps, for each task (default 0.2)")
    parser.add_argument("--preset", default="nano", help="sizes of the fresh models (default nano)")
    parser.add_argument("--parts", default="nano", metavar="MODEL", help="whose tokenizers and image encoder are used")
    parser.add_argument("--made", type=Path, metavar="DIR", help="what train_nano.sh made: its data and those parts")
    parser.add_argument("--captions", type=int, default=160_000, help="drawings to make")
    parser.add_argument("--talks", type=int, default=60_000, help="conversations to make")
    parser.add_argument("--held-out", type=int, default=2_048, help="drawings for the loss")
    parser.add_argument("--questions", type=int, default=100, help="pictures of each split that are asked about")
    parser.add_argument("--draw", type=int, default=128, help="prompts that are drawn and looked at")
    parser.add_argument("--judge", default="nano", metavar="MODEL", help="who looks at them, besides the model itself")
    args = parser.parse_args(argv)
    if args.steps is None and args.minutes is None and not (args.out / PLAN_FILE).is_file():
        parser.error("give a budget: --minutes M of everything, or --steps N of each run")
    if args.seeds < 1 or not 0 < args.stage1_share < 1 or (args.steps is not None and args.steps < 2):
        parser.error("--seeds must be at least 1, --steps at least 2, --stage1-share between 0 and 1")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    args = parse(argv)
    try:
        return compare(args)
    except OmniMambaError as error:
        say(f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""))
        return int(error.exit_code)
    except KeyboardInterrupt:
        say("stopped; the same command goes on")
        return int(ExitCode.INTERRUPTED)


def compare(args: argparse.Namespace) -> int:
    """Data, plan, runs, table."""
    begun = time.time()
    options = _options(args)
    kept = read_plan(args.out, options, args.steps)
    files = prepare(args)
    gpus = visible_gpus() if args.device != "cpu" else []
    processes = args.processes or max(1, len(gpus))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    spare = max(1, min(16, cores // processes - 1)) if gpus else 0
    workers = spare if args.workers is None else args.workers
    plan = Plan(options=options, steps=kept or args.steps or 0, out=args.out, files=files,
                device=args.device, workers=workers)  # fmt: skip
    if args.stop_minutes:
        plan = replace(plan, deadline=begun + 60 * args.stop_minutes)
    wanted = [(name, seed) for seed in range(args.seeds) for name in args.variants]
    planned_from = time.time()
    with submitting(processes, gpus) as submit:
        if not plan.steps:
            measured = read_probe(args.out, options) or submit(ablation_runs.probe, plan).result()
            write_json(args.out / PROBE_FILE, {"options": asdict(options), "probe": measured.to_dict()})
            budget = 60 * args.minutes - (time.time() - planned_from)
            shared = processes / max(1, len(gpus))  # runs on one GPU, or on the processors, wait for one another
            plan = replace(plan, steps=steps_for(measured, budget, len(wanted), processes, shared))
        if not kept:
            write_json(args.out / PLAN_FILE, {"steps": plan.steps, **asdict(options)})
        say(f"{len(wanted)} runs of {plan.steps:,} steps, {processes} at a time")
        jobs = {submit(ablation_runs.run, plan, *job): job for job in wanted}
        failed, stopped = gather(jobs, args.out, plan)
    if done := ablation_table.found(args.out):
        print(ablation_table.write(args.out, options, plan.steps, done), end="")
    if stopped:
        say(f"{stopped} of {len(wanted)} runs are not done; the same command goes on")
    return _code(failed)


def _code(failed: int) -> int:
    if ablation_runs.interrupted:
        return int(ExitCode.INTERRUPTED)
    return int(ExitCode.SOME_FAILED if failed else ExitCode.DONE)


def gather(jobs: "dict[Future[Any], tuple[str, int]]", out: Path, plan: Plan) -> tuple[int, int]:
    """Wait for all runs, a table after each; (failed, not done)."""
    failed = stopped = 0
    for future in as_completed(jobs):
        name, seed = jobs[future]
        error = future.exception()
        if error is not None:
            failed += 1
            say(f"error: {name}-{seed}: {error}")
        elif future.result() is None:
            stopped += 1
        else:
            ablation_table.write(out, plan.options, plan.steps, ablation_table.found(out))
    return failed, stopped


def steps_for(measured: Probe, budget_s: float, runs: int, processes: int, shared: float = 1.0) -> int:
    """Equal steps for every run, so that all are done in the time. Raises UsageError where that is too few.

    `shared`: runs at a time on one device; a step takes each of them so many times as long as the probe's.
    """
    rounds = -(-runs // processes)
    each = SHARE * budget_s / rounds
    step_s = measured.step_s * max(1.0, shared)
    steps = int((each - measured.run_s(0)) / step_s)
    if steps < FEWEST_STEPS:
        need = rounds * (measured.run_s(0) + FEWEST_STEPS * step_s) / SHARE / 60
        raise UsageError(
            f"{budget_s / 60:.1f} minutes are too few for {runs} runs of {measured.run_s(0):.0f} s "
            f"and {step_s:.2f} s a step",
            hint=f"--minutes {need + 1:.0f} or more, fewer --seeds or --variants, smaller batches",
        )
    return steps


# what must not change between calls


def _options(args: argparse.Namespace) -> Options:
    given = {field.name: getattr(args, field.name) for field in fields(Options)}
    return Options(**{**given, "parts": str(args.made or args.parts)})


def read_plan(out: Path, options: Options, steps: int | None) -> int | None:
    """The steps that were planned for OUT; None where nothing was. Raises UsageError for other options."""
    path = out / PLAN_FILE
    if not path.is_file():
        return None
    kept = json.loads(path.read_text(encoding="utf-8"))
    given = {**asdict(options), "steps": kept["steps"] if steps is None else steps}
    for name, value in given.items():
        if kept[name] != value:
            option = name.replace("_", "-")
            raise UsageError(
                f"{out} was begun with --{option} {kept[name]}, not {value}: its runs would not compare",
                hint=f"--{option} {kept[name]}, or another folder",
            )
    return int(kept["steps"])


def read_probe(out: Path, options: Options) -> Probe | None:
    """How long things took when a budget was too small for them."""
    path = out / PROBE_FILE
    if not path.is_file():
        return None
    kept = json.loads(path.read_text(encoding="utf-8"))
    return Probe(**kept["probe"]) if kept["options"] == asdict(options) else None


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES would hold for each GPU alone."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return given.split(",")[:count] if given else [str(i) for i in range(count)]


if __name__ == "__main__":
    sys.exit(main())
