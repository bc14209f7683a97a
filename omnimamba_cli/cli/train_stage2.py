"""`omnimamba train-stage2`: both tasks together."""

from pathlib import Path
from typing import Annotated

import typer

from omnimamba_cli.cli import options, train_common


def command(
    ctx: typer.Context,
    output: train_common.OutputDir,
    data_mmu: Annotated[
        list[Path], typer.Option("--data-mmu", metavar="FILE", help="Conversations or captions. May be repeated.")
    ],
    data_t2i: Annotated[list[Path], typer.Option("--data-t2i", metavar="FILE", help="Codes. May be repeated.")],
    init: Annotated[
        str | None, typer.Option("--init", metavar="DIR|PRESET", help="One model to start from.", show_default=False)
    ] = None,
    init_mmu: Annotated[
        Path | None, typer.Option("--init-mmu", metavar="DIR", help="Result of stage 1 mmu, to be merged.")
    ] = None,
    init_t2i: Annotated[
        Path | None, typer.Option("--init-t2i", metavar="DIR", help="Result of stage 1 t2i, to be merged.")
    ] = None,
    image_root: train_common.ImageRoot = None,
    tokenizer: train_common.TokenizerFile = None,
    vision: train_common.VisionFile = None,
    vq: train_common.VQFile = None,
    unfreeze: train_common.Unfreeze = None,
    batch_mmu: Annotated[int | None, typer.Option("--batch-mmu", min=1, help="Default: the paper's.")] = None,
    batch_t2i: Annotated[int | None, typer.Option("--batch-t2i", min=1, help="Default: the paper's.")] = None,
    weight_mmu: Annotated[float, typer.Option("--weight-mmu", min=0, help="Of this task's loss.")] = 1.0,
    weight_t2i: Annotated[float, typer.Option("--weight-t2i", min=0, help="Of this task's loss.")] = 1.0,
    caption_dropout: train_common.CaptionDropout = None,
    steps: train_common.Steps = None,
    lr: train_common.Rate = None,
    warmup: train_common.Warmup = None,
    weight_decay: train_common.WeightDecay = 0.0,
    clip: train_common.Clip = 1.0,
    accumulate: train_common.Accumulate = 1,
    ema: train_common.Ema = 0.0,
    log_every: train_common.LogEvery = 50,
    save_every: train_common.SaveEvery = 0,
    save_minutes: train_common.SaveMinutes = 10.0,
    keep: train_common.Keep = 2,
    max_minutes: train_common.MaxMinutes = 0.0,
    clock_minutes: train_common.ClockMinutes = 0.0,
    workers: train_common.Workers = None,
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
    """Train both tasks together, everything but the image encoders and the image tokenizer.

    \b
    omnimamba train-stage2 --init-mmu mmu/ --init-t2i t2i/ -o model/ \\
        --data-mmu talks.json --image-root images/ --data-t2i codes.jsonl
    omnimamba train-stage2 --init model/ -o tuned/ \\
        --data-mmu own.json --data-t2i own.jsonl
    """
    out = options.configure(ctx, quiet=quiet, verbose=verbose, color=color, json=json)
    from omnimamba_cli.engine.training import StageSettings, train
    from omnimamba_cli.errors import UsageError
    from omnimamba_cli.train.stages import recipe

    if init is not None and (init_mmu is not None or init_t2i is not None):
        raise UsageError("--init and --init-mmu/--init-t2i contradict each other", hint="give one model, or two halves")
    row = recipe(2, None)
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
    loop = train_common.loop_config(
        common,
        steps=row.steps if steps is None else steps,
        lr=row.lr if lr is None else lr,
        warmup=row.warmup if warmup is None else warmup,
        device=device,
        dtype=dtype,
    )
    settings = StageSettings(
        stage=2,
        output=output,
        loop=loop,
        init=init,
        init_mmu=init_mmu,
        init_t2i=init_t2i,
        tokenizer=tokenizer,
        vision=vision,
        vq=vq,
        data_mmu=tuple(data_mmu),
        data_t2i=tuple(data_t2i),
        image_root=image_root,
        batch_mmu=batch_mmu or row.batch_mmu,
        batch_t2i=batch_t2i or row.batch_t2i,
        weight_mmu=weight_mmu,
        weight_t2i=weight_t2i,
        caption_dropout=caption_dropout,
        unfreeze=tuple(unfreeze or ()),
        workers=train_common.default_workers(workers),
        device=device,
        resume=resume,
        force=force,
    )
    train_common.show(train(settings), out, "stage 2", loop.steps)
