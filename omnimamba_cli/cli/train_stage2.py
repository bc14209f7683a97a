"""`omnimamba train-stage2`: both tasks together."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from omnimamba_cli.cli import train_common
from omnimamba_cli.cli.option_groups import takes_groups
from omnimamba_cli.cli.options import ReportOptions
from omnimamba_cli.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    """What the run starts from."""

    init: Annotated[
        str | None,
        typer.Option(
            "--init",
            metavar="MODEL|PRESET",
            help="One model to start from; a preset's name: fresh weights.",
            show_default=False,
        ),
    ] = None
    init_mmu: Annotated[
        Path | None, typer.Option("--init-mmu", metavar="DIR", help="Result of stage 1 mmu, to be merged.")
    ] = None
    init_t2i: Annotated[
        Path | None, typer.Option("--init-t2i", metavar="DIR", help="Result of stage 1 t2i, to be merged.")
    ] = None

    def check(self) -> None:
        """Raises UsageError for one model and halves of another."""
        if self.init is not None and (self.init_mmu is not None or self.init_t2i is not None):
            raise UsageError(
                "--init and --init-mmu/--init-t2i contradict each other", hint="give one model, or two halves"
            )


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """What each task has for itself."""

    batch_mmu: Annotated[int | None, typer.Option("--batch-mmu", min=1, help=f"Rows a step; {train_common.Paper}")] = (
        None
    )
    batch_t2i: Annotated[int | None, typer.Option("--batch-t2i", min=1, help=f"Rows a step; {train_common.Paper}")] = (
        None
    )
    weight_mmu: Annotated[float, typer.Option("--weight-mmu", min=0, help="Of this task's loss.")] = 1.0
    weight_t2i: Annotated[float, typer.Option("--weight-t2i", min=0, help="Of this task's loss.")] = 1.0
    eval_mmu: Annotated[
        list[Path] | None, typer.Option("--eval-mmu", metavar="FILE", help="Held-out data for --eval-every.")
    ] = None
    eval_t2i: Annotated[
        list[Path] | None, typer.Option("--eval-t2i", metavar="FILE", help="Held-out codes for --eval-every.")
    ] = None


@takes_groups
def command(
    ctx: typer.Context,
    output: train_common.OutputDir,
    data_mmu: Annotated[
        list[Path], typer.Option("--data-mmu", metavar="FILE", help="Conversations or captions. May be repeated.")
    ],
    data_t2i: Annotated[
        list[Path],
        typer.Option("--data-t2i", metavar="FILE", help="Codes, or pictures with captions. May be repeated."),
    ],
    what: train_common.StageOptions,
    loop: train_common.LoopOptions,
    call: train_common.CallOptions,
    report: ReportOptions,
    start: StartOptions,
    each: TaskOptions,
) -> None:
    """Train both tasks together, everything but the image encoders and the image tokenizer.

    \b
    omnimamba train-stage2 --init-mmu mmu/ --init-t2i t2i/ -o model/ \\
        --data-mmu talks.json --image-root images/ --data-t2i codes.jsonl
    omnimamba train-stage2 --init model/ -o tuned/ \\
        --data-mmu own.json --data-t2i own.jsonl
    omnimamba train-stage2 --config model/train.toml --resume

    \b
    Without options the paper's settings for 1.3b:
      lr    warm-up  steps    batch             trains
      1e-4  0        150,000  24 mmu + 384 t2i  everything but towers
    """
    out = report.configure(ctx)
    from omnimamba_cli.engine.training import train
    from omnimamba_cli.train.stages import recipe

    start.check()
    settings = train_common.stage_settings(
        ctx,
        recipe(2, None),
        what,
        loop,
        call,
        stage=2,
        output=output,
        init=start.init,
        init_mmu=start.init_mmu,
        init_t2i=start.init_t2i,
        data={"mmu": data_mmu, "t2i": data_t2i},
        eval_data={"mmu": each.eval_mmu, "t2i": each.eval_t2i},
        batch={"mmu": each.batch_mmu, "t2i": each.batch_t2i},
        weight_mmu=each.weight_mmu,
        weight_t2i=each.weight_t2i,
    )
    train_common.show(train(settings), out, "stage 2", settings.loop.steps)
