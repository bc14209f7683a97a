"""`omnimamba train-tokenizer`: a text tokenizer, or an image tokenizer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from omnimamba_cli.cli import train_common
from omnimamba_cli.cli.config_file import effective
from omnimamba_cli.cli.option_groups import takes_groups
from omnimamba_cli.cli.options import ReportOptions
from omnimamba_cli.cli.output import Output
from omnimamba_cli.errors import UsageError
from omnimamba_cli.presets import preset as find_preset


@dataclass(frozen=True, kw_only=True)
class Loop(train_common.LoopOptions):
    """LoopOptions with averaging on by default: the averaged weights reconstruct better."""

    ema: Annotated[
        float, typer.Option("--ema", help="image: decay of the weights' average, which is then saved; 0: none.")
    ] = 0.999


@takes_groups
def command(
    ctx: typer.Context,
    kind: Annotated[Literal["text", "image"], typer.Argument(metavar="text|image", help="What it cuts up.")],
    data: Annotated[
        list[Path],
        typer.Option("--data", metavar="PATH", help="text: files, may be repeated; image: a folder of pictures."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="PATH", help="text: tokenizer.json; image: a directory.")
    ],
    loop: Loop,
    call: train_common.CallOptions,
    report: ReportOptions,
    vocab_size: Annotated[int, typer.Option("--vocab-size", min=257, help="text: ids.")] = 2048,
    preset: Annotated[
        str | None,
        typer.Option("--preset", help="image: whose image tokenizer's sizes; without it those of --init, else nano's."),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="image: pictures a step.")] = 64,
    init: Annotated[
        Path | None, typer.Option("--init", metavar="DIR|FILE", help="image: weights to start from (vq.safetensors).")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="image: optimiser steps.")] = 20_000,
    lr: Annotated[float, typer.Option("--lr", help="image: peak learning rate.")] = 4e-4,
    warmup: Annotated[int, typer.Option("--warmup", min=0, help="image: steps until the peak.")] = 200,
    revive_every: Annotated[
        int,
        typer.Option(
            "--revive-every",
            min=0,
            help="image: steps after which unused codes are replaced; 0: never, for fine-tuning.",
        ),
    ] = 100,
    sheet_every: Annotated[int, typer.Option("--sheet-every", min=0, help="image: steps between sheets.")] = 1000,
    compile_model: Annotated[
        bool, typer.Option("--compile", help="image: fuse operations first; pays on long runs.")
    ] = False,
) -> None:
    """Train a text tokenizer (BPE) or an image tokenizer (VQ).

    \b
    omnimamba train-tokenizer text --data captions.jsonl -o tokenizer.json
    omnimamba train-tokenizer image --data pictures/ --preset nano -o vq/
    """
    out = report.configure(ctx)
    if kind == "text":
        if call.dry_run:
            raise UsageError("train-tokenizer text has no --dry-run", hint="it takes seconds")
        _text(out, data, vocab_size, output, call.force)
        return
    from omnimamba_cli.engine.starting import part_file, vq_config
    from omnimamba_cli.engine.tokenizing import VQ_FILE
    from omnimamba_cli.engine.vq_training import VQSettings, train_image_tokenizer

    if len(data) > 1:
        raise UsageError(f"train-tokenizer image takes one folder, here are {len(data)}", hint="--data DIR")
    sizes = find_preset(preset or "nano").vq
    if init is not None and preset is None:
        sizes = vq_config(part_file(init, VQ_FILE), sizes)
    settings = VQSettings(
        data=data[0],
        output=output,
        config=sizes,
        loop=train_common.loop_config(loop, call, steps=steps, lr=lr, warmup=warmup),
        init=init,
        batch=batch,
        revive_every=revive_every,
        sheet_every=sheet_every,
        workers=train_common.default_workers(loop.workers),
        max_bad_share=loop.max_bad_share,
        tensorboard=loop.tensorboard,
        device=call.device,
        compile=compile_model,
        resume=call.resume,
        force=call.force,
        dry_run=call.dry_run,
        options=effective(ctx),
    )
    train_common.show(train_image_tokenizer(settings), out, "image tokenizer", steps)


def _text(out: Output, data: list[Path], vocab_size: int, output: Path, force: bool) -> None:
    from omnimamba_cli.engine.tokenizing import train_text_tokenizer

    train_common.show(train_text_tokenizer(data, vocab_size, output, force=force), out, "text tokenizer", 1)
