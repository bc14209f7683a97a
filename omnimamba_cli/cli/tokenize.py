"""`omnimamba tokenize`: pictures with captions to codes with captions."""

from pathlib import Path
from typing import Annotated

import typer

from omnimamba_cli.cli import options, train_common


def command(
    ctx: typer.Context,
    data: Annotated[Path, typer.Option("--data", metavar="FILE", help='JSON lines {"image": ..., "captions": [...]}.')],
    vq: Annotated[Path, typer.Option("--vq", metavar="DIR|FILE", help="Image tokenizer: model directory or file.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="JSON lines of codes.")],
    image_root: train_common.ImageRoot = None,
    preset: Annotated[
        str | None, typer.Option("--preset", help="Sizes of a vq.safetensors that has no config.json.")
    ] = None,
    batch: options.BatchSize = 64,
    workers: train_common.Workers = None,
    force: options.Force = False,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
    color: options.Color = "auto",
    json: options.Json = False,
) -> None:
    """Turn pictures with captions into training tokens; an interrupted run continues where it stopped.

    \b
    omnimamba tokenize --data captions.jsonl --vq vq/ -o codes.jsonl
    omnimamba tokenize --data captions.jsonl --image-root images/ --vq vq/ \\
        --device cuda -o codes.jsonl --force
    """
    out = options.configure(ctx, quiet=quiet, verbose=verbose, color=color, json=json)
    from omnimamba_cli.engine.tokenizing import TokenizeSettings, tokenize

    settings = TokenizeSettings(
        data=data,
        vq=vq,
        output=output,
        image_root=image_root,
        preset=preset,
        batch=batch or 64,
        workers=train_common.default_workers(workers),
        device=device,
        force=force,
    )
    with data.open(encoding="utf-8", errors="replace") as file:
        total = sum(1 for _ in file)
    train_common.show(tokenize(settings), out, "pictures", total)
