"""`omnimamba train-stage1`: one task's own parts."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from omnimamba_cli.cli import options, train_common


def command(
    ctx: typer.Context,
    output: train_common.OutputDir,
    task: Annotated[Literal["mmu", "t2i"], typer.Option("--task", help="mmu reads pictures, t2i draws them.")],
    init: Annotated[
        str, typer.Option("--init", metavar="DIR|PRESET", help="Model to start from; a preset's name: fresh weights.")
    ],
    data: Annotated[
        list[Path],
        typer.Option("--data", metavar="FILE", help="mmu: conversations or captions; t2i: codes. May be repeated."),
    ],
    image_root: train_common.ImageRoot = None,
    keep_question: Annotated[
        bool | None,
        typer.Option(
            "--keep-question/--ignore-question",
            help="mmu: train on whole conversations, or, as the paper does, on the first answer alone.",
            show_default="ignore",
        ),
    ] = None,
    tokenizer: train_common.TokenizerFile = None,
    vision: train_common.VisionFile = None,
    vq: train_common.VQFile = None,
    unfreeze: train_common.Unfreeze = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Samples a step; default: the paper's.")] = None,
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
    """Train one task's own parts on a frozen language model.

    \b
    omnimamba train-stage1 --task mmu --init base/ --data captions.json -o mmu/
    omnimamba train-stage1 --task t2i --init base/ --data codes.jsonl -o t2i/
    """
    out = options.configure(ctx, quiet=quiet, verbose=verbose, color=color, json=json)
    from omnimamba_cli.engine.training import StageSettings, train
    from omnimamba_cli.train.stages import recipe

    row = recipe(1, task)
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
        stage=1,
        task=task,
        output=output,
        loop=loop,
        init=init,
        tokenizer=tokenizer,
        vision=vision,
        vq=vq,
        data_mmu=tuple(data) if task == "mmu" else (),
        data_t2i=tuple(data) if task == "t2i" else (),
        image_root=image_root,
        questions=bool(keep_question),
        batch_mmu=batch or row.batch_mmu,
        batch_t2i=batch or row.batch_t2i,
        caption_dropout=caption_dropout,
        unfreeze=tuple(unfreeze or ()),
        workers=train_common.default_workers(workers),
        device=device,
        resume=resume,
        force=force,
    )
    train_common.show(train(settings), out, f"stage 1 {task}", loop.steps)
