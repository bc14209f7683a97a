"""`omnimamba remove`: an installed model, or what an unfinished download left, off the disk."""

from typing import Annotated

import typer

from omnimamba_cli.cli.convert import human_size
from omnimamba_cli.cli.option_groups import takes_groups
from omnimamba_cli.cli.options import ReportOptions
from omnimamba_cli.errors import UsageError


@takes_groups
def command(
    ctx: typer.Context,
    *,
    name: Annotated[str, typer.Argument(metavar="MODEL", help="An installed model, by name.")],
    yes: Annotated[bool, typer.Option("--yes", help="Really delete; without it nothing is touched.")] = False,
    report: ReportOptions,
) -> None:
    """Delete an installed model.

    \b
    omnimamba remove omnimamba-1.3b
    omnimamba remove omnimamba-1.3b --yes

    Deletes the model's own files, what an unfinished download left and the published files that --keep kept. Other
    files in the folder stay, and so does the model that comes with the program.
    """
    out = report.configure(ctx)
    from omnimamba_cli.engine import installed

    removal = installed.removal(name)
    size = human_size(removal.size_bytes)
    if not yes:
        raise UsageError(
            f"this would delete {', '.join(map(str, removal.folders))} ({size})", hint=f"omnimamba remove {name} --yes"
        )
    left = installed.remove(removal)
    for path in left:
        out.note(f"{path} holds other files, they stay")
    if out.json:
        out.record({"model": name, "removed": [str(f) for f in removal.folders], "bytes": removal.size_bytes})
        return
    out.note(f"freed {size}")
    for folder in removal.folders:
        out.line(str(folder))
