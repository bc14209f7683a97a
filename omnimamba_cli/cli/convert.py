"""`omnimamba convert`: published checkpoint files into a model directory."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from omnimamba_cli import presets
from omnimamba_cli.cli.option_groups import takes_groups
from omnimamba_cli.cli.options import Force, ReportOptions
from omnimamba_cli.cli.output import Output
from omnimamba_cli.errors import InputError, UsageError

if TYPE_CHECKING:
    from omnimamba_cli.engine.convert_files import ConvertEvent

StorageChoice = Literal["keep", "fp16", "bf16", "fp32", "int8"]


@takes_groups
def command(
    ctx: typer.Context,
    *,
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="SRC... DEST", help="Checkpoint files, then the model directory to make."),
    ] = None,
    dtype: Annotated[StorageChoice, typer.Option("--dtype", help="Number format to store weights in.")] = "keep",
    preset: Annotated[
        str | None, typer.Option("--preset", metavar="NAME", help="Size of the model (1.3b, 370m) if no file tells.")
    ] = None,
    force: Force = False,
    report: ReportOptions,
) -> None:
    """Make a model directory from published checkpoint files.

    \b
    omnimamba convert OmniMamba-1.3b.pth vq_ds16_t2i.pt dinov2.safetensors \\
        siglip.safetensors tokenizer.json my-model
    omnimamba convert OmniMamba-1.3b.pth my-model --dtype bf16
    omnimamba convert mamba2-1.3b/pytorch_model.bin base-for-training

    Files are recognised by their content, in any order. Every tensor is accounted for, or the file is refused.
    The directory appears complete or not at all; parts it already has are replaced only with --force.
    """
    out = report.configure(ctx)
    names = paths or []
    if len(names) < 2:
        raise UsageError(
            "convert needs files to read and a directory to make",
            hint="omnimamba convert OmniMamba-1.3b.pth my-model",
        )
    *sources, dest = (Path(name) for name in names)
    for source in sources:
        if not source.exists():
            raise InputError(f"{source}: no such file")
    if preset is not None:
        presets.preset(preset)  # refuses an unknown name before any file is read
    run(out, sources, dest, dtype, preset, force)


def run(out: Output, sources: list[Path], dest: Path, dtype: StorageChoice, preset: str | None, force: bool) -> None:
    """Converts, and reports: files on stderr as they are done, the directory on stdout at the end."""
    from omnimamba_cli.engine import convert_files as engine

    for event in engine.convert(sources, dest, dtype=dtype, preset=preset, force=force):
        tell(out, event)
        if not isinstance(event, engine.Finished):
            continue
        if not out.json:
            out.line(str(event.directory))
            continue
        fields = {"directory": str(event.directory), "model": event.config.name, "bytes": event.size_bytes}
        out.record({**fields, "seconds": round(event.seconds, 3), "lacks": list(event.lacks)})


def tell(out: Output, event: "ConvertEvent") -> None:
    """One event of a conversion, on stderr."""
    from omnimamba_cli.engine import convert_files as engine

    match event:
        case engine.SourceRead():
            size = human_size(event.size_bytes)
            out.note(f"read   {event.path}: {event.kind}, {event.tensors} tensors, {size}")
        case engine.PartWritten():
            out.note(f"wrote  {event.file}, {human_size(event.size_bytes)}")
        case engine.Note():
            out.note(f"note   {event.text}")
        case engine.Finished():
            for sentence in event.lacks:
                out.note(f"note   {sentence}")
            out.detail(f"{event.seconds:.1f} s")


def human_size(size_bytes: float) -> str:
    """12.3 MB and the like, in powers of 1000."""
    for unit in ("B", "kB", "MB"):
        if size_bytes < 999.5:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} GB"
