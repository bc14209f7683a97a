"""What all runs of an ablation say together: mean and spread over seeds, as JSON and a table. Used by ablations.py."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ablation_plan import VARIANTS, Options, write_json

Result = dict[str, Any]  # of one run
METRICS: dict[str, tuple[str, str]] = {  # of a result: heading, form
    "naming": ("naming", ".1%"),
    "answering": ("all questions", ".1%"),
    "drawing_loss": ("drawing loss", ".4f"),
    "drawing": ("drawing judged", ".1%"),
    "drawing_names": ("of it names", ".1%"),
    "cycle": ("cycle accuracy", ".1%"),
    "parameters": ("trained parameters", ",.0f"),
    "seconds": ("seconds", ".0f"),
}
OTHERS = ("naming_unseen_scenes", "cycle_names", "measuring_seconds")  # in the JSON alone
JSON_FILE, TABLE_FILE = "results.json", "table.md"


def summarize(results: Sequence[Result], names: Sequence[str]) -> dict[str, Any]:
    """By variant and metric: values by seed, their mean and, of two or more, the standard deviation (n - 1)."""
    summary: dict[str, Any] = {}
    for name in names:
        mine = sorted((r for r in results if r["variant"] == name), key=lambda r: r["seed"])
        if not mine:
            continue
        metrics = {metric: _spread([r[metric] for r in mine]) for metric in (*METRICS, *OTHERS)}
        summary[name] = {**asdict(VARIANTS[name]), "seeds": [r["seed"] for r in mine], **metrics}
    return summary


def _spread(values: Sequence[float | None]) -> dict[str, Any]:
    known = [v for v in values if v is not None]
    mean = statistics.fmean(known) if known else None
    return {"mean": mean, "std": statistics.stdev(known) if len(known) > 1 else None, "values": list(values)}


def markdown(summary: dict[str, Any]) -> str:
    """The table: one row a variant, mean (standard deviation over seeds)."""
    head = ["variant", "vocabulary", "LoRA", "stages", "seeds", *(heading for heading, _ in METRICS.values())]
    rows = [head, ["---"] * len(head)]
    for name, row in summary.items():
        stages = "joint" if row["joint"] else "decoupled"
        cells = [_cell(row[metric], form) for metric, (_, form) in METRICS.items()]
        rows.append([name, row["vocabulary"], row["lora"], stages, str(len(row["seeds"])), *cells])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cell(spread: dict[str, Any], form: str) -> str:
    if spread["mean"] is None:
        return "-"
    mean = format(spread["mean"], form)
    # parameters are a fact, not a measurement
    return mean if not spread["std"] else f"{mean} ({format(spread['std'], form)})"


def write(out: Path, options: Options, steps: int, results: Sequence[Result]) -> str:
    """Both files, of the runs that are done; returns the table."""
    summary = summarize(results, list(VARIANTS))
    runs = sorted(results, key=lambda r: (r["seed"], list(VARIANTS).index(r["variant"])))
    plan = {"steps": steps, **asdict(options)}
    write_json(out / JSON_FILE, {"schema": 1, "plan": plan, "variants": summary, "runs": runs})
    devices = sorted({f"{r['device']}, torch {r['versions']['torch']}, {r['date'][:10]}" for r in results})
    table = markdown(summary)
    note = (
        f"\nBudget of each run: {steps:,} steps of {options.batch_t2i:,} drawings and {options.batch_mmu:,} "
        f"conversations. Mean (standard deviation over seeds); drawing loss in nats a code; drawings judged by "
        f"{options.judge}. {'; '.join(devices)}.\n"
    )
    temporary = out / f"{TABLE_FILE}.partial"
    temporary.write_text(table + note, encoding="utf-8")
    temporary.replace(out / TABLE_FILE)
    return table


def found(out: Path) -> list[Result]:
    """The results of all runs that are done."""
    paths = sorted((out / "runs").glob("*/result.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]
