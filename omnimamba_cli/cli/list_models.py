"""`omnimamba models`: what is installed, where, how large, for which task, in which number format."""

import typer

from omnimamba_cli.cli.convert import human_size
from omnimamba_cli.cli.options import Color, Json, Quiet, Verbose, configure


def command(
    ctx: typer.Context, json: Json = False, quiet: Quiet = False, verbose: Verbose = 0, color: Color = "auto"
) -> None:
    """List the installed models.

    \b
    omnimamba models
    omnimamba models --json | jq -r .name

    A star marks what commands use when no model is named: for captions (mmu), for drawings (t2i).
    """
    out = configure(ctx, quiet=quiet, verbose=verbose, color=color, json=json)
    from omnimamba_cli.engine import installed

    rows = []
    for model in installed.listing():
        if json:
            out.record(model.to_dict())
            continue
        tasks = [f"{task}{'*' if task in model.default_for else ''}" for task in model.tasks]
        where = f"{model.directory}{'  ' + model.problem if model.problem else ''}"
        rows.append([model.name, " ".join(tasks) or "none", model.storage or "-", human_size(model.size_bytes), where])
    if not json:
        out.table(["model", "tasks", "stored", "size", "directory"], rows)
