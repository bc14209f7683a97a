"""`omnimamba train-tokenizer`: a text tokenizer, or an image tokenizer."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from omnimamba_cli.cli import options, train_common
from omnimamba_cli.cli.output import Output


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
    vocab_size: Annotated[int, typer.Option("--vocab-size", min=257, help="text: ids.")] = 2048,
    preset: Annotated[str, typer.Option("--preset", help="image: whose image tokenizer's sizes.")] = "nano",
    batch: Annotated[int, typer.Option("--batch", min=1, help="image: pictures a step.")] = 64,
    init: Annotated[
        Path | None, typer.Option("--init", metavar="DIR|FILE", help="image: weights to start from (vq.safetensors).")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="image: optimiser steps.")] = 20_000,
    lr: Annotated[float, typer.Option("--lr", help="image: peak learning rate.")] = 4e-4,
    warmup: Annotated[int, typer.Option("--warmup", min=0, help="image: steps until the peak.")] = 200,
    weight_decay: train_common.WeightDecay = 0.0,
    clip: train_common.Clip = 1.0,
    accumulate: train_common.Accumulate = 1,
    ema: train_common.Ema = 0.999,
    revive_every: Annotated[int, typer.Option("--revive-every", min=1, help="image: steps; unused codes.")] = 100,
    sheet_every: Annotated[int, typer.Option("--sheet-every", min=0, help="image: steps between sheets.")] = 1000,
    log_every: train_common.LogEvery = 50,
    save_every: train_common.SaveEvery = 0,
    save_minutes: train_common.SaveMinutes = 10.0,
    keep: train_common.Keep = 2,
    max_minutes: train_common.MaxMinutes = 0.0,
    clock_minutes: train_common.ClockMinutes = 0.0,
    workers: train_common.Workers = None,
    compile_model: train_common.Compile = False,
    seed: train_common.TrainSeed = 0,
    resume: train_common.Resume = False,
    force: options.Force = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
    color: options.Color = "auto",
    json: options.Json = False,
) -> None:
    """Train a text tokenizer (BPE) or an image tokenizer (VQ).

    \b
    omnimamba train-tokenizer text --data captions.jsonl -o tokenizer.json
    omnimamba train-tokenizer image --data pictures/ --preset nano -o vq/
    """
    out = options.configure(ctx, quiet=quiet, verbose=verbose, color=color, json=json)
    if kind == "text":
        _text(out, data, vocab_size, output, force)
        return
    from omnimamba_cli.engine.tokenizing import VQSettings, train_image_tokenizer
    from omnimamba_cli.errors import UsageError
    from omnimamba_cli.presets import preset as find_preset

    if len(data) > 1:
        raise UsageError(f"train-tokenizer image takes one folder, here are {len(data)}", hint="--data DIR")
    common = train_common.Common(
        weight_decay=weight_decay,
        clip=clip,
        accumulate=accumulate,
        ema=ema,
        log_every=log_every,
        save_every=save_every,
        save_minutes=save_minutes,
        keep=keep,
        max_minutes=max_minutes,
        clock_minutes=clock_minutes,
        seed=seed,
    )
    loop = train_common.loop_config(common, steps=steps, lr=lr, warmup=warmup, device=device, dtype=dtype)
    settings = VQSettings(
        data=data[0],
        output=output,
        config=find_preset(preset).vq,
        loop=loop,
        init=init,
        batch=batch,
        revive_every=revive_every,
        sheet_every=sheet_every,
        workers=train_common.default_workers(workers),
        device=device,
        compile=compile_model,
        resume=resume,
        force=force,
    )
    train_common.show(train_image_tokenizer(settings), out, "image tokenizer", steps)


def _text(out: Output, data: list[Path], vocab_size: int, output: Path, force: bool) -> None:
    from omnimamba_cli.engine.tokenizing import train_text_tokenizer

    train_common.show(train_text_tokenizer(data, vocab_size, output, force=force), out, "text tokenizer", 1)
