"""`omnimamba eval`: how well a model names and draws, as a table or as JSON."""

import io
import json as json_module
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from omnimamba_cli.cli import models, targets
from omnimamba_cli.cli.option_groups import takes_groups
from omnimamba_cli.cli.options import DecodingOptions, Force, ReportOptions
from omnimamba_cli.cli.output import Output
from omnimamba_cli.errors import InputError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from omnimamba_cli.engine.results import EvaluationResult


@takes_groups
def command(
    ctx: typer.Context,
    *,
    suite: Annotated[Literal["picturebook"], typer.Argument(help="What to measure with.")],
    data: Annotated[str, typer.Option("--data", metavar="DIR", help="Folder of the data set.")],
    where: DecodingOptions,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", min=1, help="At most N pictures of each split.", show_default=False),
    ] = None,
    draw: Annotated[int, typer.Option("--draw", metavar="N", min=0, help="Pictures to draw and judge.")] = 64,
    sheet: Annotated[
        str | None, typer.Option("--sheet", metavar="FILE.png", help="Write what was drawn, with the prompts.")
    ] = None,
    failures: Annotated[
        str | None, typer.Option("--failures", metavar="FILE.png", help="Write what was named wrongly, with the truth.")
    ] = None,
    out_file: Annotated[
        str | None, typer.Option("--out", metavar="FILE.json", help="Write the results here too.")
    ] = None,
    force: Force = False,
    report: ReportOptions,
) -> None:
    """Measure how well a model names and draws.

    \b
    omnimamba eval picturebook --data data/eval
    omnimamba eval picturebook --data data/eval -m my-model --limit 100 --json
    omnimamba eval picturebook --data data/eval --draw 64 --sheet drawn.png

    An answer is right when it is one of the set's, apart from case, articles, punctuation and numbers as words.
    Drawings are judged by asking the model itself what it drew (cycle accuracy), not by anybody outside.
    The set is made by:

    \b
    python examples/picturebook/make.py data/picturebook eval --out data/eval
    """
    out = report.configure(ctx, offline=where.offline)
    folder = Path(data)
    if sheet is not None and draw == 0:
        raise UsageError("--sheet shows what was drawn, and --draw 0 draws nothing", hint="--draw 64")
    if not folder.is_dir():
        hint = f"python examples/picturebook/make.py data/picturebook eval --n 300 --out {folder}"
        raise InputError(f"{folder}: no such folder", hint=hint)
    check_targets([sheet, failures], out_file, force)
    result = measure(out, folder, where, limit, draw)
    if out_file is not None:
        targets.write_whole(Path(out_file), (json_module.dumps(result.to_dict(), indent=2) + "\n").encode(), force)
    if sheet is not None:
        write_sheet(out, sheet, result.sheet, force)
    if failures is not None:
        write_sheet(out, failures, result.failure_sheet, force)
    if out.json:
        out.record(result.to_dict())
    else:
        out.table(*result.table())
        if draw:
            out.note("cycle accuracy: the model judged its own drawings")


def check_targets(sheets: list[str | None], out_file: str | None, force: bool) -> None:
    """Raises before any work for a file that cannot be written, is no PNG, or is named twice."""
    for name in sheets:
        if name is not None and Path(name).suffix.lower() != ".png":
            raise UsageError(f"{name}: sheets are written as PNG", hint=str(Path(name).with_suffix(".png")))
    paths = [Path(name) for name in (*sheets, out_file) if name is not None]
    if len(set(paths)) < len(paths):
        raise UsageError("two of --sheet, --failures and --out name the same file")
    for path in paths:
        targets.check(path, force)


def measure(out: Output, folder: Path, where: DecodingOptions, limit: int | None, draw: int) -> "EvaluationResult":
    """The evaluation, with its progress on stderr."""
    from omnimamba_cli.engine import evaluation
    from omnimamba_cli.engine.results import EvaluationStep

    session = models.open_session(out, where)
    events = evaluation.evaluate_picturebook(session, folder, limit=limit, draw=draw)
    first = next(events)
    with out.progress("measuring", total=first.total if isinstance(first, EvaluationStep) else None) as bar:
        for event in chain([first], events):
            if isinstance(event, EvaluationStep):
                bar.advance(event.done, event.stage)
            elif isinstance(event, evaluation.EvaluationResult):
                return event
    raise AssertionError("an evaluation ends with its result")


def write_sheet(out: Output, name: str, sheet: "Image | None", force: bool) -> None:
    """Writes a contact sheet as PNG, or a remark when there is nothing to show."""
    if sheet is None:
        out.note(f"{name}: not written, there is nothing to show")
        return
    buffer = io.BytesIO()
    sheet.save(buffer, "png")
    targets.write_whole(Path(name), buffer.getvalue(), force)
