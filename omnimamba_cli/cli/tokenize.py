"""`omnimamba tokenize`: pictures with captions to codes with captions."""

import os
from pathlib import Path
from typing import Annotated

import typer

from omnimamba_cli.cli import options, train_common
from omnimamba_cli.cli.config_file import ConfigFile
from omnimamba_cli.cli.option_groups import takes_groups
from omnimamba_cli.config import BAD_SHARE
from omnimamba_cli.errors import UsageError


@takes_groups
def command(
    ctx: typer.Context,
    *,
    data: Annotated[
        list[Path],
        typer.Option(
            "--data",
            metavar="PATH",
            help="Pictures with captions: .jsonl, .json, .csv, .tsv, a folder, .tar shards. May be repeated.",
        ),
    ],
    vq: Annotated[Path, typer.Option("--vq", metavar="DIR|FILE", help="Image tokenizer: model directory or file.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="JSON lines of codes.")],
    image_root: train_common.ImageRoot = None,
    preset: Annotated[
        str | None, typer.Option("--preset", help="Sizes of a vq.safetensors that has no config.json.")
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="I/N",
            help="This is process I (from 1) of N that share the work and a disk; the last one joins the parts. "
            "torchrun and accelerate launch need no --shard.",
            show_default=False,
        ),
    ] = None,
    batch: options.BatchSize = 64,
    workers: train_common.Workers = None,
    max_bad_share: train_common.MaxBadShare = BAD_SHARE,
    config: ConfigFile = None,
    force: options.Force = False,
    device: options.Device = "auto",
    report: options.ReportOptions,
) -> None:
    """Turn pictures with captions into training tokens; an interrupted run continues where it stopped.

    \b
    omnimamba tokenize --data captions.jsonl --vq vq/ -o codes.jsonl
    omnimamba tokenize --data photos/ --image-root images/ \\
        --vq vq/vq.safetensors --device cuda -o codes.jsonl --force
    omnimamba tokenize --data 'shards/{000..099}.tar' --vq vq/ \\
        -o codes.jsonl --shard 1/4
    torchrun --nproc-per-node 8 -m omnimamba_cli tokenize \\
        --data captions.csv --vq vq/ -o codes.jsonl
    """
    out = report.configure(ctx)
    from omnimamba_cli.engine.encoding import TokenizeSettings, Tokenizing

    settings = TokenizeSettings(
        data=tuple(data),
        vq=vq,
        output=output,
        image_root=image_root,
        preset=preset,
        batch=batch or 64,
        workers=train_common.default_workers(workers),
        shard=_shard(shard),
        max_bad_share=max_bad_share,
        device=device,
        force=force,
    )
    work = Tokenizing(settings)
    train_common.show(work.run(), out, "pictures", work.total)


def _shard(text: str | None) -> tuple[int, int]:
    """(number from 1, count) of --shard, or of the launcher that started this process."""
    if text is None:
        return int(os.environ.get("RANK", "0")) + 1, int(os.environ.get("WORLD_SIZE", "1"))
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal()):
        raise UsageError(f"--shard {text} is no I/N", hint="--shard 1/4 for the first of four processes")
    return int(number), int(count)
