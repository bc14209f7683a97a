"""Many questions of one picture, and pictures that were looked at before: `caption -p ... -p ...`, `--load-state`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from omnimamba_cli.cli import inputs, targets
from omnimamba_cli.cli.inputs import Picture
from omnimamba_cli.errors import ExitCode, InputError, UsageError

if TYPE_CHECKING:
    from omnimamba_cli.cli.caption import Run
    from omnimamba_cli.engine.conversation import Seen
    from omnimamba_cli.engine.events import CaptionResult

AT_ONCE = 8  # questions that share a batch, unless --batch-size says otherwise

Prompts = Annotated[
    list[str] | None,
    typer.Option(
        "--prompt",
        "-p",
        metavar="TEXT",
        help="The question; every argument is then a picture. More than one asks each picture all of them.",
    ),
]
Questions = Annotated[
    str | None,
    typer.Option("--questions", metavar="FILE", help="Read more questions from FILE, one a line; - is stdin."),
]
SaveState = Annotated[
    str | None,
    typer.Option("--save-state", metavar="FILE", help="Keep what the model knows of the picture, for --load-state."),
]
LoadState = Annotated[
    str | None,
    typer.Option("--load-state", metavar="FILE", help="Instead of a picture: what --save-state kept of one."),
]


@dataclass(frozen=True)
class Asked:
    """What was asked of which pictures, and the files of states."""

    pictures: list[Picture]
    questions: list[str | None]
    save_state: Path | None = None
    load_state: Path | None = None

    @property
    def needs_memory(self) -> bool:
        """Whether a picture is looked at apart from its question."""
        return len(self.questions) > 1 or self.save_state is not None or self.load_state is not None


def sort_out(
    arguments: Sequence[str],
    prompts: Sequence[str] | None,
    file: str | None,
    more: Sequence[str],
    *,
    save_state: str | None,
    load_state: str | None,
    force: bool,
) -> Asked:
    """Pictures and questions of one command line; `more` are the pictures of --from. Raises UsageError, InputError."""
    given: list[str | None] = [inputs.clean_text(prompt) for prompt in prompts or []]
    if file is not None:
        read = inputs.read_list(file)
        if not read:
            raise InputError(f"{file}: holds no question; write one a line")
        given += [inputs.clean_text(line) for line in read]
    if load_state is not None:
        return _of_state(arguments, given, more, Path(load_state), save_state)
    pictures, last = inputs.split_question(arguments, given[0] if given else None)
    pictures += [Picture(name) for name in more]
    if save_state is None:
        return Asked(pictures, given or [last])
    if len(pictures) > 1:
        raise UsageError(f"--save-state keeps one picture, here are {len(pictures)}", hint="one command a picture")
    targets.check(Path(save_state), force)
    return Asked(pictures, given or [last], save_state=Path(save_state))


def _of_state(
    arguments: Sequence[str], given: list[str | None], more: Sequence[str], load_state: Path, save_state: str | None
) -> Asked:
    if save_state is not None:
        raise UsageError("--load-state and --save-state contradict each other", hint="cp copies a state")
    if more or len(arguments) + bool(given) > 1:
        raise UsageError(
            "--load-state takes the place of the picture; what follows is one question",
            hint=f'omnimamba caption --load-state {load_state} "how many?"',
        )
    return Asked([Picture(str(load_state))], given or [*arguments] or [None], load_state=load_state)


def ask(run: "Run", asked: Asked, *, batch_size: int | None, stream: bool, fail_fast: bool, force: bool) -> int:
    """Every question of every picture, a line each; a bad picture is reported and passed over."""
    total = len(asked.pictures) * len(asked.questions)
    failed = 0
    with run.out.progress("looking", total=total) as bar:
        for number, picture in enumerate(asked.pictures):
            try:
                seen = _look(run, asked, picture)
            except InputError as error:
                if len(asked.pictures) == 1:
                    raise
                failed += 1
                run.out.error(error.message, error.hint)
                if fail_fast:
                    break
                continue
            if asked.save_state is not None:
                seen.save(asked.save_state, overwrite=force)
                run.out.note(f"{asked.save_state}: what {seen.session.config.name} knows of {picture.name}")
            if stream and total == 1 and not run.out.json:
                _stream(run, picture, seen, asked.questions[0])
                return ExitCode.DONE
            for question, result, seed in _answers(run, seen, asked.questions, number, batch_size or AT_ONCE):
                _show(run, picture, question, result, seed, several=len(asked.questions) > 1)
                bar.advance()
    if failed:
        run.out.note(f"{failed} of {len(asked.pictures)} pictures failed")
    return ExitCode.SOME_FAILED if failed else ExitCode.DONE


def _look(run: "Run", asked: Asked, picture: Picture) -> "Seen":
    from omnimamba_cli.cli.caption import read

    if asked.load_state is not None:
        if not asked.load_state.exists():
            raise InputError(f"{asked.load_state}: no such file")
        return run.open()[0].recall(asked.load_state)
    image = read(picture)  # before the model is loaded
    return run.open()[0].look(image)


def _answers(
    run: "Run", seen: "Seen", questions: Sequence[str | None], picture: int, size: int
) -> "Iterator[tuple[str | None, CaptionResult, int | None]]":
    """Answers in order with their seeds; question j of picture i draws with seed + i * questions + j."""
    _, sampling = run.open()
    seed = None if run.seed is None else run.seed + picture * len(questions)
    for batch in (questions[start : start + size] for start in range(0, len(questions), size)):
        results = seen.answers(batch, sampling=sampling, seed=seed, template=run.template)
        for row, (question, result) in enumerate(zip(batch, results, strict=True)):
            yield question, result, None if seed is None else seed + row
        seed = None if seed is None else seed + len(batch)


def _show(
    run: "Run", picture: Picture, question: str | None, result: "CaptionResult", seed: int | None, *, several: bool
) -> None:
    """A JSON line, or a line of NAME, QUESTION and ANSWER, of which it has what is needed to tell them apart."""
    from omnimamba_cli.cli.caption import folded

    asked = question or run.open()[0].config.default_question
    if run.out.json or not several:
        replace(run, question=asked).show(picture, result, seed)
        return
    columns = [picture.name] if run.names else []
    run.out.line("\t".join([*columns, folded(asked), folded(result.text)]))


def _stream(run: "Run", picture: Picture, seen: "Seen", question: str | None) -> None:
    """One answer, piece by piece."""
    from omnimamba_cli.cli.caption import folded

    _, sampling = run.open()
    if run.names:
        run.out.piece(f"{picture.name}\t")
    for event in seen.stream(question, sampling=sampling, seed=run.seed, template=run.template):
        text = folded(event.text) if run.names else event.text
        if text:
            run.out.piece(text)
    run.out.line("")
