"""`omnimamba data`: checks training data (`check`), and counts the samples of shards (`index`)."""

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from omnimamba_cli.cli import options, train_common
from omnimamba_cli.cli.option_groups import takes_groups
from omnimamba_cli.cli.output import Output, printable
from omnimamba_cli.config import BAD_SHARE
from omnimamba_cli.errors import ExitCode, UsageError
from omnimamba_cli.presets import preset as find_preset

if TYPE_CHECKING:
    from omnimamba_cli.config import ModelConfig
    from omnimamba_cli.data.tokenizer import TextTokenizer
    from omnimamba_cli.engine.data_check import CheckSettings, FileReport
    from omnimamba_cli.engine.data_layout import Layout

WIDTH = 100  # characters of a text that a layout shows
WORDS = {  # kind of problem -> what follows the number of samples that have it
    "malformed": "malformed",
    "picture": "without a picture that can be read",
    "codes": "with wrong codes",
    "too long": "without room for an answer",
    "cut": "cut to what fits",
    "duplicate": "that stand twice",
}

command = typer.Typer(rich_markup_mode=None, no_args_is_help=False)


@command.callback(invoke_without_command=True)
def group(ctx: typer.Context) -> None:
    """Look at training data before anyone trains on them.

    \b
    omnimamba data check talks.json --image-root images/
    omnimamba data index 'https://host/{000..099}.tar' -o all.shards.jsonl
    """
    if ctx.invoked_subcommand is None:
        (ctx.find_object(Output) or Output()).line(ctx.get_help())
        raise typer.Exit(ExitCode.USAGE)


@command.command()
@takes_groups
def check(
    ctx: typer.Context,
    *,
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...", help="Conversations, captions or codes: .json, .jsonl, .csv, .tsv, folders, .tar shards."
        ),
    ],
    image_root: train_common.ImageRoot = None,
    model: options.Model = None,
    preset: Annotated[
        str | None, typer.Option("--preset", help="Check for this size of model instead.", show_default=False)
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", metavar="FILE", help="And this tokenizer.json.", show_default=False)
    ] = None,
    task: Annotated[
        Literal["mmu", "t2i"] | None,
        typer.Option("--task", help="What pictures are for; without it mmu.", show_default=False),
    ] = None,
    decode: Annotated[int, typer.Option("--decode", metavar="N", min=0, help="Decode about N pictures a file.")] = 256,
    all_pictures: Annotated[bool, typer.Option("--all", help="Decode every picture.")] = False,
    examples: Annotated[int, typer.Option("--examples", metavar="N", min=0, help="Show N samples as tokens.")] = 1,
    listed: Annotated[int, typer.Option("--list", metavar="N", min=0, help="Name N samples of each problem.")] = 5,
    max_bad_share: train_common.MaxBadShare = BAD_SHARE,
    speed: Annotated[
        str | None,
        typer.Option(
            "--speed",
            metavar="N[,N...]",
            help="Also measure samples a second with N worker processes, 5 seconds each.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", envvar="OMNIMAMBA_SEED", min=0, help="Of which are decoded.")] = 0,
    report: options.ReportOptions,
) -> None:
    """Count what can be trained on, name what cannot and why, and show how samples become tokens.

    \b
    omnimamba data check talks.json --image-root images/
    omnimamba data check codes.jsonl photos/ 'shards/{000..099}.tar' --json
    omnimamba data check talks.json --preset 1.3b --tokenizer tokenizer.json \\
        --all --speed 1,2

    Every sample is read and every picture's head; of the pictures some (or --all) are decoded. Exit code 0: nothing is
    wrong; 6: training would skip some samples; 3: it would refuse the data.
    """
    out = report.configure(ctx)
    workers = _numbers(speed)
    from omnimamba_cli.engine.data_check import CheckSettings

    config, text_tokenizer = _model(out, model, preset, tokenizer)
    settings = CheckSettings(
        config=config,
        tokenizer=text_tokenizer,
        image_root=image_root,
        task=task,
        decode=None if all_pictures else decode,
        examples=examples,
        listed=listed,
        limit=max_bad_share,
        seed=seed,
    )
    reports = [_check(out, Path(file), settings) for file in files]
    _speed(out, [Path(file) for file in files], settings, workers)
    if all(report.error for report in reports):
        raise typer.Exit(ExitCode.INPUT)
    if any(report.error or report.bad for report in reports):
        raise typer.Exit(ExitCode.SOME_FAILED)


def _numbers(text: str | None) -> list[int]:
    parts = text.split(",") if text else []
    if not all(part.strip().isdecimal() for part in parts):
        raise UsageError(f"--speed {text} is no list of numbers", hint="--speed 1,2")
    return [int(part) for part in parts]


def _model(
    out: Output, model: str | None, preset: str | None, tokenizer: Path | None
) -> "tuple[ModelConfig, TextTokenizer]":
    """The configuration and the tokenizer of the model that the data are for."""
    from omnimamba_cli.data.tokenizer import TextTokenizer
    from omnimamba_cli.engine import hub
    from omnimamba_cli.engine.checkpoint import TOKENIZER, read_config

    if not model:
        model = hub.default_model(None)
        if preset is None or tokenizer is None:
            out.note(f"for {model} (-m chooses another model, --preset and --tokenizer those of one yet to be trained)")
    directory = hub.resolve(model)
    config = find_preset(preset) if preset else read_config(directory)
    return config, TextTokenizer.from_file(tokenizer or directory / TOKENIZER, config.text)


def _check(out: Output, path: Path, settings: "CheckSettings") -> "FileReport":
    from omnimamba_cli.engine.data_check import FileReport, check_file

    shown = 0
    with out.progress(f"checking {path.name}") as bar:
        for event in check_file(path, settings):
            if isinstance(event, FileReport):
                report = event
            else:
                bar.advance(event.step - shown)
                shown = event.step
    if out.json:
        out.record({"type": "file", **report.to_dict()})
        for example in report.examples:
            out.record({"type": "example", "path": report.path, **example.to_dict()})
    else:
        _report(out, report)
    if report.error:
        out.error(report.error, report.hint)
    return report


def _report(out: Output, report: "FileReport") -> None:
    from omnimamba_cli.engine.data_check import REMARKS

    pictures = f", {report.pictures:,} with a picture ({report.decoded:,} decoded)" if report.pictures else ""
    texts = f"; text {report.tokens_mean:g} tokens, at most {report.tokens_most:,}" if report.tokens_most else ""
    if report.samples:
        out.line(f"{report.path}: {report.kind}, {report.usable:,} of {report.samples:,} can be used{pictures}{texts}")
    for kind, problem in report.problems.items():
        out.line(f"  {problem.count:,} {WORDS[kind]}{'' if kind in REMARKS else ', skipped in training'}")
        for name, reason in problem.first:
            out.line(f"    {printable(name)}: {printable(reason)}")
        if problem.count > len(problem.first):
            out.line(f"    and {problem.count - len(problem.first):,} more")
    for example in report.examples:
        _layout(out, example)


def _layout(out: Output, layout: "Layout") -> None:
    out.line(f"  {layout.name}" + (f", {layout.picture}" if layout.picture else "") + ", as tokens:")
    for span in layout.spans:
        place = str(span.start) if span.end == span.start + 1 else f"{span.start}-{span.end - 1}"
        text = span.text if span.text is None or len(span.text) <= WIDTH else span.text[:WIDTH] + "..."
        words = "" if text is None else " " + json_module.dumps(text, ensure_ascii=False)
        out.line(f"    {place:>9}  {span.what}{', trained on' if span.trained else ''}{words}")


def _speed(out: Output, paths: list[Path], settings: "CheckSettings", workers: list[int]) -> None:
    if not workers:
        return
    from omnimamba_cli.engine.data_speed import measure_speed

    for number in workers:
        found = measure_speed(paths, settings, number)
        if out.json:
            out.record({"type": "speed", **asdict(found)})
        else:
            cpu = "" if found.cpu_ms is None else f", {found.cpu_ms:g} ms of processor time each"
            out.line(
                f"{found.workers} workers: {found.samples_per_s:,} samples/s{cpu}, in batches of {found.batch} at "
                f"{found.side_px} px ({found.processors} processors, Pillow {found.pillow})"
            )


@command.command()
@takes_groups
def index(
    ctx: typer.Context,
    *,
    shards: Annotated[list[str], typer.Argument(metavar="SHARD...", help="Tar files: paths, URLs, pipe:COMMAND.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The list: NAME.shards.jsonl.")],
    force: options.Force = False,
    report: options.ReportOptions,
) -> None:
    """Count the samples of tar shards into a list that can be trained on. Remote ones are read once for it.

    \b
    omnimamba data index 'https://host/{000..099}.tar' -o all.shards.jsonl
    omnimamba data index 'pipe:aws s3 cp s3://bucket/{00..31}.tar -' \\
        -o all.shards.jsonl
    omnimamba train-stage1 --task mmu --data all.shards.jsonl ...
    """
    out = report.configure(ctx)
    from omnimamba_cli.data.shards import LIST, expanded
    from omnimamba_cli.engine.indexing import index_shards

    if not output.name.endswith(LIST):
        raise UsageError(f"{output} does not end in {LIST}, by which a list is known", hint=f"-o all{LIST}")
    urls = [url for text in shards for url in expanded(text)]
    train_common.show(index_shards(urls, output, force=force), out, "shards", len(urls))
