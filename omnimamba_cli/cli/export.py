"""`omnimamba export`: a model as a folder that `hf upload` shares: its files, checked, and a complete card."""

from pathlib import Path
from typing import Annotated

import typer

from omnimamba_cli.cli.convert import human_size
from omnimamba_cli.cli.option_groups import takes_groups
from omnimamba_cli.cli.options import Force, ReportOptions
from omnimamba_cli.errors import InputError


@takes_groups
def command(
    ctx: typer.Context,
    *,
    model: Annotated[str, typer.Argument(metavar="DIR|MODEL", help="A model directory, or an installed model.")],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder to make. Without it: DIR.export beside the model."),
    ] = None,
    repo: Annotated[
        str, typer.Option("--repo", metavar="ORG/NAME", help="Where it will be; the card's commands name it.")
    ] = "ORG/NAME",
    licence: Annotated[
        str | None,
        typer.Option("--license", metavar="ID", help="The Hub's name of its licence, such as apache-2.0."),
    ] = None,
    notes: Annotated[
        str | None,
        typer.Option("--notes", metavar="FILE.md", help="What it was trained on and cannot do; goes into the card."),
    ] = None,
    force: Force = False,
    report: ReportOptions,
) -> None:
    """Make a folder that can be shared on the Hub.

    \b
    omnimamba export runs/mine --repo me/mine --license apache-2.0
    hf upload me/mine runs/mine.export
    omnimamba export my-model -o shared --notes about.md

    The folder holds the model's files, each checked against the configuration, without snapshots and settings of its
    training, and a card: what it can do, sizes, hashes, commands. Others then use it as --model me/mine.
    """
    out = report.configure(ctx)
    from omnimamba_cli.engine import exporting, hub

    directory = hub.resolve(model)
    text = None
    if notes is not None:
        try:
            text = Path(notes).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise InputError(f"{notes} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    dest = Path(output) if output else directory.resolve().with_name(f"{directory.resolve().name}.export")
    made = exporting.export(directory, dest, repo=repo, licence=licence, notes=text, force=force)
    for sentence in made.lacks:
        out.note(f"note   {sentence}")
    if licence is None:
        out.note("note   the card names no licence; --license sets it")
    if out.json:
        out.record(
            {"directory": str(dest), "bytes": made.size_bytes, "files": list(made.files), "lacks": list(made.lacks)}
        )
        return
    out.note(f"{human_size(made.size_bytes)}; next: hf upload {repo} {dest}")
    out.line(str(dest))
