"""`omnimamba caption`: pictures in, words out, each as soon as it is known."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from omnimamba_cli.cli import inputs, models
from omnimamba_cli.cli.inputs import Picture
from omnimamba_cli.cli.options import (
    BatchSize,
    Color,
    Device,
    Dtype,
    Force,
    FromFile,
    Json,
    MaxNewTokens,
    MinP,
    Model,
    NulSeparated,
    Offline,
    Quantize,
    Quiet,
    RepetitionPenalty,
    Seed,
    Temperature,
    TopK,
    TopP,
    Verbose,
    configure,
    given,
)
from omnimamba_cli.cli.output import Output
from omnimamba_cli.cli.questions import LoadState, Prompts, Questions, SaveState, ask, sort_out
from omnimamba_cli.errors import ExitCode, InputError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from omnimamba_cli.config import SamplingConfig
    from omnimamba_cli.engine.events import CaptionResult
    from omnimamba_cli.engine.session import Session
    from omnimamba_cli.model.quantized import Quantization


def command(
    ctx: typer.Context,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="IMAGE... [QUESTION]", help="Pictures (- is stdin), then perhaps a question."),
    ] = None,
    prompt: Prompts = None,
    questions: Questions = None,
    template: Annotated[
        str | None,
        typer.Option(
            "--template",
            metavar="NAME|TEXT",
            help="How the question is put: released, training, or a text with {question}. Without it the model's own.",
            show_default=False,
        ),
    ] = None,
    from_file: FromFile = None,
    nul: NulSeparated = False,
    model: Model = None,
    offline: Offline = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    max_new_tokens: MaxNewTokens = None,
    seed: Seed = None,
    batch_size: BatchSize = None,
    with_filename: Annotated[
        bool | None,
        typer.Option(
            "--with-filename/--no-filename",
            "-H",
            help="Put the picture's name and a tab before its caption; by default when there are several.",
            show_default=False,
        ),
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream/--no-stream", help="Show a single caption while it is written.")
    ] = True,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first picture that fails.")] = False,
    save_state: SaveState = None,
    load_state: LoadState = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
    color: Color = "auto",
) -> int:
    """Say what is in pictures, or answer a question about them.

    \b
    omnimamba caption fox.png
    omnimamba caption fox.png -p "what colour is the background?" -p "how many?"
    omnimamba caption photos/*.jpg --json > captions.jsonl
    curl -s https://example.org/cat.jpg | omnimamba caption - "what is here?"

    The answer is the likeliest one unless --temperature says otherwise. One picture prints the caption
    alone; several print NAME, a tab, and the caption on one line each. Several questions of a picture look
    at it once, and print QUESTION, a tab, and the answer on one line each.
    """
    out = configure(ctx, quiet=quiet, verbose=verbose, color=color, json=json, offline=offline)
    settings = given(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        max_new_tokens=max_new_tokens,
    )
    inputs.refuse_stdin_twice(from_file == "-", questions == "-", *(a == "-" for a in arguments or []))
    more = inputs.read_list(from_file, nul) if from_file is not None else []
    asked = sort_out(
        arguments or [], prompt, questions, more, save_state=save_state, load_state=load_state, force=force
    )
    pictures, question = asked.pictures, asked.questions[0]
    if not pictures:
        raise UsageError("there is no picture to look at", hint='omnimamba caption fox.png "what is here?"')
    several = len(pictures) > 1
    run = Run(
        out,
        question,
        settings,
        seed,
        model,
        device,
        dtype,
        quantize,
        names=several if with_filename is None else with_filename,
        template=template and template_text(template),
    )
    if asked.needs_memory:
        return ask(run, asked, batch_size=batch_size, stream=stream, fail_fast=fail_fast, force=force)
    if stream and not several and not json:
        run.stream(pictures[0])
        return ExitCode.DONE
    return run.batch(pictures, batch_size or 1, fail_fast)


@dataclass
class Run:
    """One command's settings; the model is opened when the first picture turned out to be one."""

    out: Output
    question: str | None
    settings: dict[str, float | int]
    seed: int | None
    model: str | None
    device: str
    dtype: str
    quantize: "Quantization | None"
    names: bool
    template: str | None
    _opened: "tuple[Session, SamplingConfig] | None" = None

    def open(self) -> "tuple[Session, SamplingConfig]":
        """The session and how it samples; draws and reports a seed where one is needed."""
        if self._opened is None:
            session = models.open_session(self.out, self.model, self.device, self.dtype, self.quantize, task="mmu")
            sampling = replace(session.config.caption_sampling, **self.settings)  # type: ignore[arg-type]  # by field
            if sampling.temperature > 0 and self.seed is None:
                self.seed = models.new_seed()
                self.out.note(f"seed {self.seed}")
            self._opened = session, sampling
        return self._opened

    def stream(self, picture: Picture) -> None:
        """One picture, its caption shown piece by piece."""
        image = read(picture)
        session, sampling = self.open()
        if self.names:
            self.out.piece(f"{picture.name}\t")
        reason = None
        for event in session.stream_caption(
            image, self.question, sampling=sampling, seed=self.seed, template=self.template
        ):
            text = folded(event.text) if self.names else event.text
            if text:
                self.out.piece(text)
            reason = event.finish_reason
        self.out.line("")
        if reason == "length":
            self.out.detail(f"the caption ends after {sampling.max_new_tokens} tokens (--max-new-tokens)")

    def batch(self, pictures: Sequence[Picture], batch_size: int, fail_fast: bool) -> int:
        """Many pictures, a result a line; a bad one is reported and passed over."""
        failed = 0
        remaining = iter(enumerate(pictures))
        with self.out.progress("looking", total=len(pictures)) as bar:
            while chunk := list(islice(remaining, batch_size)):
                good: list[tuple[int, Picture, Image]] = []
                for index, picture in chunk:
                    try:
                        good.append((index, picture, read(picture)))
                    except InputError as error:
                        if len(pictures) == 1:
                            raise
                        failed += 1
                        self.out.error(error.message, error.hint)
                        if fail_fast:
                            break
                for _, picture, result, seed in self.answers(good):
                    self.show(picture, result, seed)
                if failed and fail_fast:
                    break
                bar.advance(len(chunk))
        if failed:
            self.out.note(f"{failed} of {len(pictures)} pictures failed")
        return ExitCode.SOME_FAILED if failed else ExitCode.DONE

    def answers(
        self, good: "list[tuple[int, Picture, Image]]"
    ) -> "Iterator[tuple[int, Picture, CaptionResult, int | None]]":
        """The captions of one batch; picture i of the run draws with seed + i whatever came before it."""
        while good:
            session, sampling = self.open()
            # the engine counts seeds from a batch's first row: split where a bad picture left a gap
            run = 1
            while run < len(good) and good[run][0] == good[0][0] + run:
                run += 1
            part, good = good[:run], good[run:]
            seed = None if self.seed is None else self.seed + part[0][0]
            questions = [self.question] * len(part)
            images = [image for *_, image in part]
            results = session.captions(images, questions, sampling=sampling, seed=seed, template=self.template)
            for row, ((index, picture, _), result) in enumerate(zip(part, results, strict=True)):
                yield index, picture, result, None if seed is None else seed + row

    def show(self, picture: Picture, result: "CaptionResult", seed: int | None) -> None:
        """One result, as a JSON line or as text."""
        if not self.out.json:
            name = f"{picture.name}\t" if self.names else ""
            self.out.line(name + (folded(result.text) if self.names else result.text))
            return
        session, sampling = self.open()
        self.out.record(
            {
                "image": picture.name,
                "question": self.question or session.config.default_question,
                "caption": result.text,
                "finish_reason": result.finish_reason,
                "tokens": result.tokens,
                "seconds": round(result.seconds, 3),
                "seed": seed if sampling.temperature > 0 else None,
                "model": session.config.name,
            }
        )


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


def read(picture: Picture) -> "Image":
    """A picture decoded, before any model is loaded. Raises InputError by the name the user wrote."""
    from omnimamba_cli.data.images import load_image

    return load_image(picture.source(), name=picture.name)


def folded(text: str) -> str:
    """On one line: line ends and tabs become spaces."""
    return text.replace("\r\n", " ").replace("\n", " ").replace("\r", " ").replace("\t", " ")
