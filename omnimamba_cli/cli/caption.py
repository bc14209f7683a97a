"""`omnimamba caption`: pictures in, words out, each as soon as it is known."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from omnimamba_cli.cli import inputs, models
from omnimamba_cli.cli.captioning import Run, journal_key
from omnimamba_cli.cli.journal import Journal
from omnimamba_cli.cli.option_groups import takes_groups
from omnimamba_cli.cli.options import (
    DecodingOptions,
    KeepOptions,
    ListOptions,
    PaceOptions,
    ReportOptions,
    Seed,
    TextSampling,
)
from omnimamba_cli.cli.questions import QuestionOptions, StateOptions, ask, sort_out
from omnimamba_cli.errors import ExitCode, UsageError


@dataclass(frozen=True, kw_only=True)
class SourceOptions(ListOptions):
    """Where pictures come from, besides the arguments."""

    recursive: Annotated[bool, typer.Option("--recursive", help="Look at the pictures in folders, too.")] = False
    allow_urls: Annotated[
        bool, typer.Option("--allow-urls", help="Fetch pictures named by http and https addresses.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """How answers are written."""

    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="TEMPLATE",
            help="A text file for each answer, such as '{dir}/{stem}.txt'; fields are {dir}, {stem}, {name} and {n}.",
        ),
    ] = None
    with_filename: Annotated[
        bool | None,
        typer.Option(
            "--with-filename/--no-filename",
            "-H",
            help="Put the picture's name and a tab before its caption; by default when there are several.",
            show_default=False,
        ),
    ] = None
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Show a single caption while it is written.")] = (
        True
    )


@takes_groups
def command(
    ctx: typer.Context,
    *,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="IMAGE... [QUESTION]", help="Pictures (- is stdin), then perhaps a question."),
    ] = None,
    asking: QuestionOptions,
    source: SourceOptions,
    answers: AnswerOptions,
    keep: KeepOptions,
    where: DecodingOptions,
    sampled: TextSampling,
    seed: Seed = None,
    states: StateOptions,
    pace: PaceOptions,
    report: ReportOptions,
) -> int:
    """Say what is in pictures, or answer a question about them.

    \b
    omnimamba caption fox.png
    omnimamba caption fox.png -p "what colour is the background?" -p "how many?"
    omnimamba caption photos --recursive --append captions.jsonl
    curl -s https://example.org/cat.jpg | omnimamba caption - "what is here?"

    The answer is the likeliest one unless --temperature says otherwise. One picture prints the caption
    alone; several print NAME, a tab, and the caption on one line each, in order, as they are ready. Several
    questions of a picture look at it once, and put QUESTION and a tab before each answer.

    A list's lines are names, or objects with "image" and perhaps "question", "seed" and "output". With
    --json the fields are schema, image, sha256, question, text, finish_reason (stop, or length for a
    caption that was cut), tokens, seconds (of the batch), seed and model.
    """
    out = report.configure(ctx, offline=where.offline)
    settings = sampled.given()
    output = None if answers.output == "-" else answers.output  # stdout is where answers go anyway
    from_file, listed = source.from_file, source.from_file is not None
    inputs.refuse_stdin_twice(from_file == "-", asking.questions == "-", *(a == "-" for a in arguments or []))
    asked = sort_out(arguments or [], asking, states, listed=listed, force=keep.force)
    pictures, question = asked.pictures, asked.questions[0]
    if not pictures and not listed:
        raise UsageError("there is no picture to look at", hint='omnimamba caption fox.png "what is here?"')
    keep.check(json=out.json)
    if output is None and keep.skip_existing and not listed:
        raise UsageError("--skip-existing is for answers that go into files", hint="-o '{dir}/{stem}.txt', or --append")
    opened_up = listed or any(inputs.means_several(p, source.recursive) for p in pictures)
    several = opened_up or len(pictures) > 1
    if pace.deterministic:
        models.be_deterministic(out)
    run = Run(
        out,
        question,
        settings,
        seed,
        where,
        names=several if answers.with_filename is None else answers.with_filename,
        template=asking.template and template_text(asking.template),
        output=output,
        force=keep.force,
        skip_existing=keep.skip_existing,
        steady=pace.deterministic or not (from_file == "-" or source.allow_urls),
        alone=not several,
    )
    # a result that is shown as it is written: one, as text, on stdout
    streams = answers.stream and not (several or out.json or output is not None or keep.append is not None)
    if streams and not (pace.dry_run or asked.needs_memory or inputs.is_url(pictures[0].name)):
        run.stream(pictures[0])
        return ExitCode.DONE
    reading = {"nul": source.nul, "recursive": source.recursive, "allow_urls": source.allow_urls}
    found = inputs.expanded(pictures, from_file, **reading)
    with ExitStack() as stack:
        if keep.append is not None:
            run.journal = stack.enter_context(Journal(Path(keep.append), journal_key))
        if pace.dry_run:
            return run.rehearse(found)
        total = None if opened_up else len(pictures)
        if asked.needs_memory:
            return ask(run, asked, found, total, batch_size=pace.batch_size, stream=streams, fail_fast=pace.fail_fast)
        return run.batch(found, total, pace.batch_size, pace.fail_fast)


def template_text(name: str) -> str:
    """The template of a name, or the text itself. Raises UsageError for one without a place for the question."""
    from omnimamba_cli.data import sequences

    known = {"released": sequences.RELEASED_PROMPT, "training": sequences.TRAINING_PROMPT}
    text = known.get(name, name)
    if "{question}" not in text:
        raise UsageError(
            f"--template {name!r} is neither {' nor '.join(known)}, and holds no {{question}}",
            hint=f"--template '{sequences.RELEASED_PROMPT}'",
        )
    return text
