"""Makes the PictureBook data sets: python make.py DATA COMMAND [--n N --out DIR]; --help lists the commands.

The same seed gives the same bytes, whatever the number of processes.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from fetch import FetchError
from pictures import Pictures
from records import IMAGES_A_FOLDER, Job, Record, image_path, make_item
from render import render
from splits import SPLITS

CHUNK = 256  # items a task: large against the cost of sending one
# Each process maps the pictures once, at its first item.
_opened: dict[Path, Pictures] = {}


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of the packages and rendered pictures; filled when empty")
    parser.add_argument("command", choices=("prepare", "train-mmu", "captions", "held-out", "images", "eval"))
    parser.add_argument("--n", type=int, default=300, help="images; for eval images a split (default 300)")
    parser.add_argument("--out", type=Path, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="default: one a core")
    args = parser.parse_args(argv)
    if args.command != "prepare" and args.out is None:
        parser.error(f"{args.command} needs --out DIR")
    if args.n < 1 or args.processes < 1:
        parser.error("--n and --processes must be at least 1")
    started = time.monotonic()
    try:
        render(args.data, args.processes)
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 4
    if args.command != "prepare":
        build(args.data, Job(command=args.command, seed=args.seed, n=args.n, out=args.out), args.processes)
    print(f"{args.command}: done in {time.monotonic() - started:.1f} s", file=sys.stderr)
    return 0


def build(data: Path, job: Job, processes: int) -> None:
    """Writes one data set into job.out."""
    images = job.n * (len(SPLITS) if job.command == "eval" else 1)
    for first in range(0, images, IMAGES_A_FOLDER):
        (job.out / image_path(first)).parent.mkdir(parents=True, exist_ok=True)
    records = _records(data, job, images, processes)
    if job.command == "train-mmu":
        _write(job.out / "mmu.json", _as_array(records))
    elif job.command in ("captions", "held-out"):
        _write(job.out / "captions.jsonl", (f"{_dump(record)}\n" for record in records))
    elif job.command == "eval":
        _write(job.out / "eval.jsonl", _eval_lines(records))
        prompts = _records(data, Job(command="prompts", seed=job.seed, n=job.n, out=job.out), job.n, processes)
        _write(job.out / "prompts.jsonl", (f"{_dump(record)}\n" for record in prompts))
    else:
        for _ in records:
            pass


def _records(data: Path, job: Job, n: int, processes: int) -> Iterator[Record]:
    """The records of items 0 to n - 1, in order."""
    spans = [range(first, min(n, first + CHUNK)) for first in range(0, n, CHUNK)]
    work = partial(_make_span, data, job)
    if processes == 1:
        for span in spans:
            yield from work(span)
        return
    with multiprocessing.Pool(processes) as pool:
        for records in pool.imap(work, spans):
            yield from records


def _make_span(data: Path, job: Job, span: range) -> list[Record]:
    """Some items, in a worker."""
    if data not in _opened:
        _opened[data] = Pictures.open(data)
    made = (make_item(job, _opened[data], number) for number in span)
    return [record for record in made if record is not None]


def _as_array(records: Iterator[Record]) -> Iterator[str]:
    """A JSON array, one record a line, without holding them all."""
    mark = "[\n"
    for record in records:
        yield f"{mark}{_dump(record)}"
        mark = ",\n"
    yield "\n]\n"


def _eval_lines(records: Iterator[Record]) -> Iterator[str]:
    """One line a question."""
    for record in records:
        for asked in record["asked"]:
            yield f"{_dump({'split': record['split'], 'image': record['image'], **asked})}\n"


def _dump(record: Record) -> str:
    """Compact JSON; the few names that are not ASCII stay readable."""
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"))


def _write(path: Path, parts: Iterator[str]) -> None:
    """Writes a text file under a temporary name, then renames it: a file that is there is whole."""
    temporary = path.with_name(f"{path.name}.partial")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(parts)
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main())
