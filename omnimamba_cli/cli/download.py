"""`omnimamba download`: the published model, fetched, checked and converted; first it says what that takes."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from omnimamba_cli.cli import convert
from omnimamba_cli.cli.convert import StorageChoice, human_size
from omnimamba_cli.cli.option_groups import takes_groups
from omnimamba_cli.cli.options import Force, Offline, ReportOptions
from omnimamba_cli.cli.output import Bar, Output
from omnimamba_cli.errors import UsageError

if TYPE_CHECKING:
    from omnimamba_cli.engine.downloading import DownloadEvent, Plan

MB = 1_000_000
QUIET_S = 15.0  # between two lines about one file where no bar is drawn


@takes_groups
def command(
    ctx: typer.Context,
    *,
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL|ORG/REPO", help="A published model, or a Hub repository that holds one of ours."),
    ] = "omnimamba-1.3b",
    task: Annotated[
        Literal["mmu", "t2i"] | None,
        typer.Option(
            "--task", help="Only what captions (mmu) or drawings (t2i) need; the rest can follow.", show_default=False
        ),
    ] = None,
    directory: Annotated[
        str | None,
        typer.Option(
            "--dir",
            metavar="DIR",
            help="Model directory to make. Without it: weights/ of a checkout, or the user's data.",
        ),
    ] = None,
    from_folder: Annotated[
        str | None,
        typer.Option("--from", metavar="DIR", help="Take the published files from this folder, not from the network."),
    ] = None,
    dtype: Annotated[StorageChoice, typer.Option("--dtype", help="Number format to store weights in.")] = "keep",
    keep: Annotated[bool, typer.Option("--keep", help="Keep the published files beside the model.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read a finished model whole and compare hashes.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what it would take.")] = False,
    force: Force = False,
    offline: Offline = False,
    report: ReportOptions,
) -> None:
    """Fetch the published model and make it ready.

    \b
    omnimamba download --dry-run
    omnimamba download
    omnimamba download --task mmu --dtype bf16
    omnimamba download --from /media/usb --dir models/omnimamba-1.3b

    Stopped at any point, the same command continues. Every file is checked against the hash that the Hub states.
    The model appears whole or not at all; the published files are deleted then. A finished one is not fetched again.
    """
    out = report.configure(ctx, offline=offline)
    for option, value in (("--dir", directory), ("--from", from_folder)):
        if value == "":  # of a script's unset variable; gigabytes would go elsewhere
            raise UsageError(f"{option} is empty", hint=f"{option} DIR, or leave it out")
    if "/" in model:
        if task or directory or from_folder or keep or verify or dry_run or force or dtype != "keep":
            raise UsageError(
                f"{model} goes into the Hub's cache as it is: no option applies", hint=f"omnimamba download {model}"
            )
        repository(out, model)
        return
    from omnimamba_cli.engine import downloading, hub, published

    release = published.release(model)
    plan = downloading.plan(
        release,
        Path(directory) if directory else hub.install_folder() / release.name,
        task=task,
        dtype=dtype,
        source=Path(from_folder) if from_folder else None,
        force=force,
        verify=verify,
    )
    if dry_run:
        show(out, plan)
        return
    fetch(out, plan, release.name, keep=keep)
    if not directory:
        out.note('ready: omnimamba caption photo.jpg "what is here?"')


def fetch(out: Output, plan: "Plan", name: str, *, keep: bool) -> None:
    """Carry out a plan and say what came of it; raises what downloading.run raises."""
    from omnimamba_cli.engine import downloading

    for line in lines(plan):
        out.note(line)
    with out.progress("fetching (MB)", total=sum(item.size_bytes for item in plan.items) / MB) as bar:
        made = downloading.run(plan, Teller(out, bar), keep=keep)
    if out.json:
        out.record({"model": name, "directory": str(made), "bytes": size_of(made), "fetched_bytes": plan.fetch_bytes})
    else:
        out.line(str(made))


def repository(out: Output, name: str) -> None:
    """A model directory of the Hub into huggingface_hub's cache."""
    from omnimamba_cli.engine import hub

    path = hub.resolve(name)
    if out.json:
        out.record({"model": name, "directory": str(path), "bytes": size_of(path)})
    else:
        out.line(str(path))


def size_of(directory: Path) -> int:
    """Bytes of a directory's files."""
    return sum(path.stat().st_size for path in directory.iterdir() if path.is_file())


def lines(plan: "Plan") -> list[str]:
    """A plan in words."""
    if not plan.items:
        return [f"{plan.release.name} is complete in {plan.directory}"]
    width = max(len(item.file.key) for item in plan.items)
    told = [f"{plan.release.title} into {plan.directory}"]
    for item in plan.items:
        here = f"  {human_size(item.here_bytes)} of it here" if item.here_bytes else ""
        told.append(f"  {item.file.key:{width}}  {human_size(item.size_bytes):>8}{here}")
    told.append(
        f"  to fetch {human_size(plan.fetch_bytes)}; at most {human_size(plan.disk_bytes)} of disk while it is made, "
        f"{human_size(plan.free_bytes)} free; about {human_size(plan.memory_bytes)} of memory to convert"
    )
    return told


def show(out: Output, plan: "Plan") -> None:
    """The plan as the command's result."""
    if not out.json:
        for line in lines(plan):
            out.line(line)
        return
    files = [
        {
            "file": item.file.key,
            "bytes": item.size_bytes,
            "here_bytes": item.here_bytes,
            "commit": item.remote and item.remote.commit,
        }
        for item in plan.items
    ]
    out.record(
        {
            "model": plan.release.name,
            "directory": str(plan.directory),
            "files": files,
            "fetch_bytes": plan.fetch_bytes,
            "disk_bytes": plan.disk_bytes,
            "free_bytes": plan.free_bytes,
            "memory_bytes": plan.memory_bytes,
        }
    )


class Teller:
    """Shows a download: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, out: Output, bar: Bar) -> None:
        self.out, self.bar = out, bar
        self.shown = 0.0  # megabytes on the bar
        self.told_at = time.monotonic()

    def __call__(self, event: "DownloadEvent") -> None:
        """Show one event of the engine."""
        from omnimamba_cli.engine import downloading

        match event:
            case downloading.Progress():
                self.progress(event.key, event.done_bytes, event.size_bytes, event.all_done_bytes)
            case downloading.Fetched():
                self.told_at = time.monotonic()
                self.out.note(f"got    {event.key}, {human_size(event.size_bytes)}, sha256 {event.sha256[:12]}")
            case _:
                convert.tell(self.out, event)

    def progress(self, key: str, done: int, size: int, all_done: int) -> None:
        """Show how many bytes of a file, and of all files, are here."""
        detail = f"{key.rsplit('/', 1)[-1]}: {human_size(done)} of {human_size(size)}"
        self.bar.advance(all_done / MB - self.shown, detail)
        self.shown = all_done / MB
        if not self.out.stderr.isatty() and time.monotonic() - self.told_at >= QUIET_S:
            self.told_at = time.monotonic()
            self.out.note(f"       {detail}")
