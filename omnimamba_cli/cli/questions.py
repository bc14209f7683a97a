"""Several questions about a picture, and saved states of pictures: `caption -p ... -p ...`, `--load-state`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Annotated

import typer

from omnimamba_cli.cli import inputs, targets
from omnimamba_cli.cli.captioning import Run, folded
from omnimamba_cli.cli.inputs import Picture
from omnimamba_cli.cli.jobs import Job
from omnimamba_cli.cli.output import printable
from omnimamba_cli.errors import InputError, UsageError

if TYPE_CHECKING:
    from omnimamba_cli.engine.conversation import Seen
    from omnimamba_cli.engine.events import CaptionResult

AT_ONCE = 8  # questions in a batch, without --batch-size

LoadState = Annotated[
    str | None,
    typer.Option("--load-state", metavar="FILE", help="Instead of a picture: what --save-state kept of one."),
]


@dataclass(frozen=True, kw_only=True)
class QuestionOptions:
    """What is asked, besides the last argument, and how it is put."""

    prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt",
            "-p",
            metavar="TEXT",
            help="The question; every argument is then a picture. More than one asks each picture all of them.",
        ),
    ] = None
    questions: Annotated[
        str | None,
        typer.Option("--questions", metavar="FILE", help="Read more questions from FILE, one a line; - is stdin."),
    ] = None
    template: Annotated[
        str | None,
        typer.Option(
            "--template",
            metavar="NAME|TEXT",
            help="How the question is put: released, training, or a text with {question}. Without it the model's own.",
            show_default=False,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class StateOptions:
    """Files of what the model knows of a picture."""

    save_state: Annotated[
        str | None,
        typer.Option(
            "--save-state", metavar="FILE", help="Keep what the model knows of the picture, for --load-state."
        ),
    ] = None
    load_state: LoadState = None


@dataclass(frozen=True)
class Asked:
    """Which questions are asked about which pictures, and the files of states."""

    pictures: list[Picture]
    questions: list[str | None]
    save_state: Path | None = None
    load_state: Path | None = None

    @property
    def needs_memory(self) -> bool:
        """Whether the picture is read on its own first (a Seen), and questions afterwards."""
        return len(self.questions) > 1 or self.save_state is not None or self.load_state is not None


def sort_out(
    arguments: Sequence[str], asked: QuestionOptions, states: StateOptions, *, listed: bool, force: bool
) -> Asked:
    """Pictures and questions of a command line. `listed`: a list names more pictures. Raises UsageError, InputError."""
    given: list[str | None] = [inputs.clean_text(prompt) for prompt in asked.prompt or []]
    if asked.questions is not None:
        read = inputs.read_list(asked.questions)
        if not read:
            raise InputError(f"{asked.questions}: holds no question; write one a line")
        given += [inputs.clean_text(line) for line in read]
    save_state = states.save_state
    if states.load_state is not None:
        return _of_state(arguments, given, listed, Path(states.load_state), save_state)
    pictures, last = inputs.split_question(arguments, given[0] if given else None, listed=listed)
    if save_state is None:
        return Asked(pictures, given or [last])
    if listed or len(pictures) > 1:
        raise UsageError("--save-state keeps one picture, here are more", hint="one command a picture")
    targets.check(Path(save_state), force)
    return Asked(pictures, given or [last], save_state=Path(save_state))


def _of_state(
    arguments: Sequence[str], given: list[str | None], listed: bool, load_state: Path, save_state: str | None
) -> Asked:
    if save_state is not None:
        raise UsageError("--load-state and --save-state contradict each other", hint="cp copies a state")
    if listed or len(arguments) + bool(given) > 1:
        raise UsageError(
            "--load-state takes the place of the picture; what follows is one question",
            hint=f'omnimamba caption --load-state {load_state} "how many?"',
        )
    return Asked([Picture(str(load_state))], given or [*arguments] or [None], load_state=load_state)


def ask(
    run: Run,
    asked: Asked,
    pictures: Iterable[Picture | InputError],
    total: int | None,
    *,
    batch_size: int | None,
    stream: bool,
    fail_fast: bool,
) -> int:
    """Ask every question about every picture, a line each; bad pictures are reported. Returns the exit code."""
    if run.output is not None:
        raise UsageError("-o keeps one answer a picture", hint="--append answers.jsonl keeps them all")
    shown, begun, cpu = 0, perf_counter(), process_time()
    if run.journal is not None and run.journal.count:
        run.check_journal(run.journal)
    with run.out.progress("looking", total=total) as bar:
        for number, picture in enumerate(pictures):
            try:
                if isinstance(picture, InputError):
                    raise picture
                _ask_one(run, asked, number, picture, batch_size or AT_ONCE, stream)
                shown += 1
            except InputError as error:
                run.fail(error)
                if fail_fast:
                    break
            bar.advance()
    return run.sum_up(shown, perf_counter() - begun, process_time() - cpu)


def _ask_one(run: Run, asked: Asked, number: int, picture: Picture, size: int, stream: bool) -> None:
    """Ask the questions that the journal does not have yet; without any the picture is not read at all."""
    if picture.output is not None:
        raise InputError(f"{picture.name}: its output keeps one answer, here are several questions")
    own = [picture.question] if picture.question is not None else asked.questions
    todo = [
        (i, question)
        for i, question in enumerate(own)
        if run.journal is None or not run.journal.holds(run.key(replace(picture, question=question)))
    ]
    run.skipped += len(own) - len(todo)
    if not todo:
        return
    seen, sha256 = _look(run, asked, number, picture)
    # not earlier: run.seed may have been chosen when the model was loaded
    first = (run.seed or 0) + number * len(asked.questions) if picture.seed is None else picture.seed
    if asked.save_state is not None:
        seen.save(asked.save_state, overwrite=run.force)
        run.out.note(f"{asked.save_state}: what {seen.session.config.name} knows of {picture.name}")
    _, sampling = run.open()
    if stream and len(todo) == 1:
        _stream(run, picture, seen, todo[0][1], first)
        return
    for batch in (todo[start : start + size] for start in range(0, len(todo), size)):
        results = seen.answers(
            [question for _, question in batch],
            sampling=sampling,
            seed=[first + i for i, _ in batch],
            template=run.template,
        )
        for (i, question), result in zip(batch, results, strict=True):
            _show(run, replace(picture, question=question), result, first + i, sha256, several=len(asked.questions) > 1)


def _look(run: Run, asked: Asked, number: int, picture: Picture) -> "tuple[Seen, str | None]":
    """The model's state after a picture, and the hash of its file if results show it."""
    if asked.load_state is not None:
        if not asked.load_state.exists():
            raise InputError(f"{asked.load_state}: no such file")
        return run.open()[0].recall(asked.load_state), None
    loaded = run.load(Job(number, picture))  # before the model is loaded
    return run.open()[0].look(loaded.image), loaded.sha256


def _show(run: Run, picture: Picture, result: "CaptionResult", seed: int, sha256: str | None, *, several: bool) -> None:
    """A JSON line, or a line of NAME, QUESTION and ANSWER; NAME and QUESTION only if there are several."""
    if run.out.json or run.journal is not None or not several:
        run.show(picture, result, seed, sha256=sha256)
        return
    asked = picture.question or run.open()[0].config.default_question
    columns = [printable(picture.name)] if run.names else []
    run.out.line("\t".join([*columns, folded(asked), folded(result.text)]))


def _stream(run: Run, picture: Picture, seen: "Seen", question: str | None, seed: int) -> None:
    """One answer, piece by piece."""
    _, sampling = run.open()
    run.show_pieces(picture, seen.stream(question, sampling=sampling, seed=seed, template=run.template))
