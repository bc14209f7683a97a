"""`omnimamba chat`: questions about a picture, one after the other, on a terminal or through a pipe."""

from dataclasses import replace
from typing import Annotated

import typer

from omnimamba_cli.cli import inputs, models, showing, talk
from omnimamba_cli.cli.app import as_known
from omnimamba_cli.cli.caption import template_text
from omnimamba_cli.cli.captioning import read_picture
from omnimamba_cli.cli.keyboard import Keyboard, history_file
from omnimamba_cli.cli.option_groups import takes_groups
from omnimamba_cli.cli.options import DecodingOptions, ReportOptions, Seed, TextSampling
from omnimamba_cli.cli.output import Output
from omnimamba_cli.cli.questions import LoadState
from omnimamba_cli.cli.talk import Settings, Talk
from omnimamba_cli.errors import ExitCode, UsageError


@takes_groups
def command(
    ctx: typer.Context,
    *,
    image: Annotated[str | None, typer.Argument(metavar="[IMAGE]", help="The picture to talk about.")] = None,
    load_state: LoadState = None,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", help="Read each question after the earlier ones and their answers.")
    ] = False,
    template: Annotated[
        str | None,
        typer.Option(
            "--template",
            metavar="NAME|TEXT",
            help="How a question is put, as for caption.",
            show_default=False,
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--show/--no-show", help="Show drawn pictures on a terminal.")] = True,
    history: Annotated[
        bool, typer.Option("--history/--no-history", help="Remember the lines that are typed at a terminal.")
    ] = True,
    where: DecodingOptions,
    sampled: TextSampling,
    seed: Seed = None,
    report: ReportOptions,
) -> int:
    """Ask about a picture, again and again; draw one and ask about it.

    \b
    omnimamba chat fox.png
    omnimamba chat                       # then /draw a red fox, or /image fox.png
    printf 'what is here?\\nhow many?\\n' | omnimamba chat fox.png -q

    The picture is looked at once. Each question is answered from the picture alone: the model has learnt
    single questions, so "and what colour is it?" does not know what "it" was. --follow reads the earlier
    questions and answers first, as in its training's conversations, whose questions did not refer to each
    other either.

    Commands: /image FILE, /draw PROMPT, /save FILE, /follow on|off, /reset, /help, /quit.

    Ctrl-C stops an answer, Ctrl-D ends. From a pipe each line is a question, each answer one line of stdout;
    a line that fails is reported, and the exit code is 6.
    """
    out = report.configure(ctx, offline=where.offline)
    chosen = sampled.given()
    if image is not None and load_state is not None:
        raise UsageError("--load-state takes the place of the picture", hint="leave one of the two out")
    if image == "-":
        raise UsageError("stdin is where the questions come from", hint="omnimamba chat fox.png")
    form = template and template_text(template)
    picture = read_picture(inputs.Picture(image)) if image is not None else None
    keyboard = Keyboard(out, talk.command_names(), history=history_file() if history else None)
    session = models.open_session(out, where, task="mmu")
    sampling = replace(session.config.caption_sampling, **chosen)  # type: ignore[arg-type]  # by field
    if sampling.temperature > 0 and seed is None:
        seed = models.new_seed()
        out.note(f"seed {seed}")
    lines = not keyboard.is_terminal
    chat = Talk(out, session, Settings(sampling, seed, form, follow, lines), showing.Screen(out) if show else None)
    if image is not None and picture is not None:
        chat.look(image, picture)
    if load_state is not None:
        chat.recall(load_state)
    if keyboard.is_terminal:
        about = f"about {chat.name}" if chat.seen else "after /image FILE or /draw PROMPT"
        out.note(f"{session.config.name}: ask {about}; /help lists the commands, Ctrl-D ends")
    return converse(out, chat, keyboard)


def converse(out: Output, chat: Talk, keyboard: Keyboard) -> int:
    """Handles lines until there are no more. Ctrl-C ends a pipe, but at a terminal only the answer."""
    failed = False
    try:
        while not chat.done:
            try:
                line = keyboard.line()
                if line is None:
                    break
                chat.handle(line)
            except KeyboardInterrupt:
                if not keyboard.is_terminal:
                    raise
                out.note("stopped")
            except Exception as error:
                known = as_known(error)
                if known is None:
                    raise
                out.error(known.message, known.hint)
                out.traceback(error)
                failed = True
    finally:
        keyboard.close()
    return ExitCode.SOME_FAILED if failed and not keyboard.is_terminal else ExitCode.DONE
