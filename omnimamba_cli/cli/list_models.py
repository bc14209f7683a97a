"""`omnimamba models`: what is installed, where, how large, for which task, in which number format."""

import typer

from omnimamba_cli.cli.convert import human_size
from omnimamba_cli.cli.option_groups import takes_groups
from omnimamba_cli.cli.options import ReportOptions


@takes_groups
def command(ctx: typer.Context, report: ReportOptions) -> None:
    """List the installed models.

    \b
    omnimamba models
    omnimamba models --json | jq -r .name

    A star marks what commands use when no model is named: for captions (mmu), for drawings (t2i).
    """
    out = report.configure(ctx)
    from omnimamba_cli.engine import installed

    rows = []
    for model in installed.listing():
        if out.json:
            out.record(model.to_dict())
            continue
        tasks = [f"{task}{'*' if task in model.default_for else ''}" for task in model.tasks]
        where = f"{model.directory}{'  ' + model.problem if model.problem else ''}"
        rows.append([model.name, " ".join(tasks) or "none", model.storage or "-", human_size(model.size_bytes), where])
    if not out.json:
        out.table(["model", "tasks", "stored", "size", "directory"], rows)
