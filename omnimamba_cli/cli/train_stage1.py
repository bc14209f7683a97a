"""`omnimamba train-stage1`: one task's own parts."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from omnimamba_cli.cli import train_common
from omnimamba_cli.cli.option_groups import takes_groups
from omnimamba_cli.cli.options import ReportOptions


@takes_groups
def command(
    ctx: typer.Context,
    output: train_common.OutputDir,
    task: Annotated[Literal["mmu", "t2i"], typer.Option("--task", help="mmu reads pictures, t2i draws them.")],
    init: Annotated[
        str,
        typer.Option("--init", metavar="MODEL|PRESET", help="Model to start from; a preset's name: fresh weights."),
    ],
    data: Annotated[
        list[Path],
        typer.Option(
            "--data",
            metavar="PATH",
            help="mmu: conversations or captions; t2i: codes, or pictures with captions. May be repeated.",
        ),
    ],
    what: train_common.StageOptions,
    loop: train_common.LoopOptions,
    call: train_common.CallOptions,
    report: ReportOptions,
    keep_question: Annotated[
        bool | None,
        typer.Option(
            "--keep-question/--ignore-question",
            help="mmu: train on whole conversations, or, as the paper does, on the first answer alone.",
            show_default="ignore",
        ),
    ] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help=f"Samples a step; {train_common.Paper}")] = None,
    eval_data: Annotated[
        list[Path] | None,
        typer.Option("--eval-data", metavar="FILE", help="Held-out data for --eval-every. May be repeated."),
    ] = None,
) -> None:
    """Train one task's own parts on a frozen language model.

    \b
    omnimamba train-stage1 --task mmu --init base/ --data captions.json -o mmu/
    omnimamba train-stage1 --task t2i --init base/ --data codes.jsonl -o t2i/
    omnimamba train-stage1 --config mmu/train.toml --resume

    \b
    Without options the paper's settings for 1.3b:
      task  lr    warm-up  steps    batch  trains
      mmu   1e-3  100      5,000    256    projector lora_mmu
      t2i   8e-4  1,000    100,000  720    lora_t2i image_embedding image_mlp
                                           caption_mlp t2i_positions
                                           text_embedding
    """
    out = report.configure(ctx)
    from omnimamba_cli.engine.training import train
    from omnimamba_cli.train.stages import recipe

    settings = train_common.stage_settings(
        ctx,
        recipe(1, task),
        what,
        loop,
        call,
        stage=1,
        task=task,
        output=output,
        init=init,
        data={task: data},
        eval_data={task: eval_data},
        batch={task: batch},
        questions=bool(keep_question),
    )
    train_common.show(train(settings), out, f"stage 1 {task}", settings.loop.steps)
