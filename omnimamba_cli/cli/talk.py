"""What `omnimamba chat` does with each line: a question is answered, a /command is done."""

import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from omnimamba_cli.cli import drawing, inputs, models, showing, targets
from omnimamba_cli.cli.captioning import folded, read_picture
from omnimamba_cli.cli.inputs import Picture
from omnimamba_cli.cli.output import Output
from omnimamba_cli.cli.targets import Target
from omnimamba_cli.errors import InputError, UsageError, nearest

if TYPE_CHECKING:
    from PIL.Image import Image

    from omnimamba_cli.config import SamplingConfig
    from omnimamba_cli.engine.conversation import Seen
    from omnimamba_cli.engine.events import TextEvent
    from omnimamba_cli.engine.session import Session

STATE = ".state"  # suffix of what Seen.save writes


@dataclass
class Settings:
    """How a chat answers and draws."""

    sampling: "SamplingConfig"
    seed: int | None  # of the first answer and the first drawing; None: a random one for each
    template: str | None
    follow: bool  # whether a question is read after the earlier ones and their answers
    lines: bool  # put each answer on one line, for programs that read them


@dataclass
class Talk:
    """One chat: the picture it is about and what was said."""

    out: Output
    session: "Session"
    settings: Settings
    screen: showing.Screen | None = None
    name: str = ""  # of the picture, as the user knows it
    picture: "Image | None" = None  # None, too, if only its state was loaded
    seen: "Seen | None" = None
    earlier: "Seen | None" = None  # with `follow`: the state after the picture and all that was said
    said: list[tuple[str, str]] = field(default_factory=list)
    drawn: tuple[str, int] | None = None  # prompt and seed, if the picture was drawn here
    drawings: int = 0
    answers: int = 0
    done: bool = False

    def handle(self, line: str) -> None:
        """Do what a line says. Raises OmniMambaError for what cannot be done."""
        text = inputs.clean_text(line).strip()
        if not text:
            return
        if not text.startswith("/"):
            self.answer(text)
            return
        name, _, argument = line.strip().partition(" ")
        command = COMMANDS.get(name)
        if command is None:
            hint = nearest(name, COMMANDS) or "/help lists them"
            raise UsageError(f"there is no command {inputs.clean_text(name)}", hint=hint)
        command.do(self, argument.strip())

    # questions

    def answer(self, question: str) -> None:
        """Print the answer piece by piece, and remember it when it is complete."""
        if self.seen is None:
            raise InputError("there is no picture to talk about yet", hint="/image FILE or /draw PROMPT")
        s = self.settings
        seed = None if s.seed is None else s.seed + self.answers
        self.answers += 1
        start = self._start(question)
        pieces: list[str] = []
        last: TextEvent | None = None
        try:
            # closed at once, so that after Ctrl-C nothing goes on writing
            with closing(start.stream(question, sampling=s.sampling, seed=seed, template=s.template)) as events:
                for last in events:
                    pieces.append(folded(last.text) if s.lines else last.text)
                    if not self.out.json and last.text:
                        self.out.piece(pieces[-1])
        finally:
            if last is not None and not self.out.json:
                self.out.line("")
        text = "".join(pieces).strip()
        if self.out.json and last is not None:
            self.out.record(
                {
                    "image": self.name,
                    "question": question,
                    "caption": text,
                    "finish_reason": last.finish_reason,
                    "tokens": last.tokens,
                    "seed": seed if s.sampling.temperature > 0 else None,
                    "model": self.session.config.name,
                }
            )
        self.said.append((question, text))
        if s.follow:
            self.earlier = start.after(question, text, template=s.template)

    def _start(self, question: str) -> "Seen":
        """The state to ask from: after the picture, or with `follow` after all that was said, unless it is too long."""
        assert self.seen is not None
        if not self.settings.follow or self.earlier is None:
            return self.seen
        config = self.session.config
        longest = len(self.session.tokenizer.encode(question)) + self.settings.sampling.max_new_tokens
        if self.earlier.text_tokens + longest > config.max_text_tokens:
            self.out.note("what was said is longer than in the model's training: going on from the picture alone")
            self.earlier = None
            return self.seen
        return self.earlier

    # commands

    def image(self, argument: str) -> None:
        """/image FILE: begin to talk about a picture file."""
        path = os.path.expanduser(argument.strip("'\""))
        if not path:
            raise UsageError("/image needs a file", hint="/image fox.png")
        if path == "-":
            raise UsageError("stdin is where the questions come from", hint="/image fox.png")
        self.look(path, read_picture(Picture(path)))

    def look(self, name: str, picture: "Image", drawn: tuple[str, int] | None = None) -> None:
        """Begin to talk about a picture."""
        seen = self.session.look(picture)
        self.name, self.picture, self.drawn, self.seen = name, picture, drawn, seen
        self.reset("")

    def recall(self, path: str) -> None:
        """Begin to talk about a picture that was saved as a state."""
        self.name, self.seen = path, self.session.recall(path)

    def draw(self, prompt: str) -> None:
        """/draw PROMPT: draw a picture and begin to talk about it."""
        if not prompt:
            raise UsageError("/draw needs a prompt", hint="/draw a red fox")
        text = inputs.clean_text(prompt)
        seed = models.new_seed() if self.settings.seed is None else self.settings.seed + self.drawings
        screen = self.screen if self.screen is not None and self.screen.way else None
        with self.out.progress("drawing", total=1) as bar:
            watch = showing.follow(bar, screen) if bar.shown else None
            (event,) = self.session.stream_generate([text], seed=seed, watch=watch)
        self.drawings += 1
        if screen is not None:
            screen.show(event.image)
        self.look(text, event.image, (text, seed))
        self.out.note(f"seed {seed}; /save {targets.slug(text)}.png keeps it")

    def save(self, argument: str) -> None:
        """/save FILE: the suffix says what is saved."""
        path = Path(os.path.expanduser(argument.strip("'\"")))
        if not argument:
            raise UsageError("/save needs a file", hint=f"/save fox.png (the picture), fox{STATE} or talk.txt")
        suffix = path.suffix.lower()
        if suffix not in (*targets.FORMATS, STATE, ".txt"):
            known = ", ".join([*targets.FORMATS, STATE, ".txt"])
            raise UsageError(f"{path}: what to save is told by the suffix: {known}", hint=f"/save {path.stem}.png")
        if os.path.lexists(path):
            raise InputError(f"{path}: exists and is not overwritten", hint="/save under another name")
        targets.check(path, force=False)
        if suffix == ".txt":
            lines = [f"# {self.name}", *(f"{folded(q)}\t{folded(a)}" for q, a in self.said)]
            targets.write_whole(path, ("\n".join(lines) + "\n").encode(), force=False)
        elif suffix == STATE:
            self._known().save(path)
        else:
            self._save_picture(path)
        if self.out.json:
            self.out.record({"path": str(path), "model": self.session.config.name})
        else:
            self.out.line(str(path))

    def _known(self) -> "Seen":
        known = self.earlier or self.seen
        if known is None:
            raise InputError("there is no picture to save", hint="/image FILE or /draw PROMPT")
        return known

    def _save_picture(self, path: Path) -> None:
        from omnimamba_cli.engine.events import ImageEvent

        if self.picture is None:
            why = f"of {self.name} there is only the state" if self.seen else "there is no picture to save"
            raise InputError(why, hint="/image FILE or /draw PROMPT")
        prompt, seed = self.drawn or ("", 0)
        target = Target(prompt, seed, path, targets.FORMATS[path.suffix.lower()])
        event = ImageEvent(0, prompt, seed, self.picture, 0.0)
        data = drawing.encode(target, event, self.session.config.name if self.drawn else None)
        targets.write_whole(path, data, force=False)

    def reset(self, argument: str) -> None:
        """/reset: forget what was said."""
        self.said.clear()
        self.earlier = None

    def follow(self, argument: str) -> None:
        """/follow on|off: whether questions are read after the earlier ones."""
        if argument not in ("on", "off"):
            raise UsageError("/follow is on or off", hint="/follow on")
        self.settings.follow = argument == "on"
        self.earlier = None

    def help(self, argument: str) -> None:
        """/help: list the commands."""
        width = max(len(f"{name} {c.argument}") for name, c in COMMANDS.items())
        for name, command in COMMANDS.items():
            self.out.line(f"{f'{name} {command.argument}':{width}}  {command.help}")

    def quit(self, argument: str) -> None:
        """/quit: end the chat."""
        self.done = True


@dataclass(frozen=True)
class Command:
    """A word that begins with a slash."""

    do: Callable[[Talk, str], None]
    help: str
    argument: str = ""


COMMANDS = {
    "/image": Command(Talk.image, "talk about another picture", "FILE"),
    "/draw": Command(Talk.draw, "draw a picture, then talk about it", "PROMPT"),
    "/save": Command(Talk.save, f"keep the picture (.png), its state ({STATE}) or the talk (.txt)", "FILE"),
    "/follow": Command(Talk.follow, "read each question after the earlier ones, or by itself", "on|off"),
    "/reset": Command(Talk.reset, "forget what was said, keep the picture"),
    "/help": Command(Talk.help, "show this list"),
    "/quit": Command(Talk.quit, "end, as Ctrl-D does"),
}


def command_names() -> Sequence[str]:
    """All commands, for completion."""
    return list(COMMANDS)
