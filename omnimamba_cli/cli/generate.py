"""`omnimamba generate`: words in, picture files out, each written as soon as it is drawn."""

from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from omnimamba_cli.cli import grids, inputs, models, showing, targets
from omnimamba_cli.cli.drawing import Run, journal_key
from omnimamba_cli.cli.journal import Journal
from omnimamba_cli.cli.option_groups import takes_groups
from omnimamba_cli.cli.options import (
    DecodingOptions,
    FormatChoice,
    ImageSampling,
    KeepOptions,
    ListOptions,
    PaceOptions,
    ReportOptions,
    Seed,
)
from omnimamba_cli.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class PictureOptions:
    """What is made of the pictures."""

    format_choice: Annotated[
        FormatChoice | None, typer.Option("--format", help="Where the file's name does not tell: png.")
    ] = None
    metadata: Annotated[
        bool, typer.Option("--metadata/--no-metadata", help="Write prompt, seed, model and version into a PNG.")
    ] = True
    grid: Annotated[
        bool, typer.Option("--grid", help="One file with all pictures side by side, each with its seed.")
    ] = False
    show: Annotated[
        bool, typer.Option("--show", help="Show the pictures on the terminal, too, while they are drawn.")
    ] = False


@takes_groups
def command(
    ctx: typer.Context,
    *,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="What to draw; - reads prompts from stdin, one a line.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="File, folder/ or - for stdout; may hold {prompt-slug}, {seed} and {n}. "
            "Without it the file is named after the prompt.",
        ),
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", metavar="N", min=1, help="Pictures of each prompt.")] = 1,
    seed: Seed = None,
    listing: ListOptions,
    keep: KeepOptions,
    made: PictureOptions,
    where: DecodingOptions,
    sampled: ImageSampling,
    pace: PaceOptions,
    report: ReportOptions,
) -> int:
    """Draw pictures from words.

    \b
    omnimamba generate "a red fox" -o fox.png --show
    omnimamba generate "a red fox" -n 4 --seed 7 -o fox.png   # to fox-4.png
    omnimamba generate - -o 'out/{prompt-slug}-{seed}.png' < prompts.txt
    omnimamba generate "a red fox" -o - | omnimamba caption - "what is here?"

    Prints the path of each. Picture i uses seed + i, whatever the batch size. Sampling is the model's own
    unless an option says otherwise. An existing file is kept unless --force is given.

    A list's lines are prompts, or objects with "prompt" and perhaps "seed" and "output". With --json the
    fields are schema, path, prompt, seed, width, height, seconds (of the batch), model, run_seed and format.
    """
    out = report.configure(ctx, offline=where.offline)
    settings = sampled.given()
    check_files(output, keep, json=out.json, grid=made.grid)
    listed = prompt == "-" or listing.from_file is not None
    wishes = inputs.wishes(prompt, listing.from_file, listing.nul)
    if pace.deterministic:
        models.be_deterministic(out)
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(Path(keep.append), journal_key)) if keep.append is not None else None
        # a run that goes on has the seeds that it had
        before = journal.last if journal is not None and journal.last is not None else {}
        drawn_seed = before.get("run_seed", models.new_seed()) if seed is None else seed
        run = Run(out, drawn_seed, keep.force, keep.skip_existing, made.metadata, pace.fail_fast, listed, journal)
        if made.grid:
            run.sheet, pictures = grids.plan(list(wishes), count, drawn_seed, output, made.format_choice)
            ready = run.ready([run.sheet])
        else:
            ready = run.ready(targets.plan(wishes, count, drawn_seed, output, made.format_choice))
        if pace.dry_run:
            return run.rehearse(ready)
        ready = run.before_any_work(ready)
        if (first := next(ready, None)) is not None:
            session = models.open_session(out, where, task="t2i")
            if seed is None:
                out.note(f"seed {drawn_seed}")
            steady = pace.deterministic or "-" not in (prompt, listing.from_file)
            run.screen = showing.screen(out) if made.show else None
            run.keep_all(session, pictures if made.grid else chain([first], ready), settings, pace.batch_size, steady)
        return run.sum_up()


def check_files(output: str | None, keep: KeepOptions, *, json: bool, grid: bool) -> None:
    """Raises UsageError for options about files that contradict each other."""
    if output == "-" and json:
        raise UsageError("--json and -o - both want stdout", hint="give a file: -o fox.png")
    keep.check(json=json)
    if keep.append is not None and output == "-":
        raise UsageError("--append writes JSON lines about files; -o - makes none", hint="give a file: -o fox.png")
    if keep.append is not None and grid:
        raise UsageError("--append writes a line for each picture; --grid makes one file of them all")
