"""What `omnimamba generate` does after its options are parsed: prompts in, picture files out, in order."""

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from omnimamba_cli import __version__
from omnimamba_cli.cli import grids, showing, targets
from omnimamba_cli.cli.journal import Journal, Key, Record
from omnimamba_cli.cli.output import Output
from omnimamba_cli.cli.targets import Target
from omnimamba_cli.errors import ExitCode, InputError

if TYPE_CHECKING:
    from omnimamba_cli.engine.events import DrawingEvent, ImageEvent
    from omnimamba_cli.engine.session import Session

AT_ONCE = 32  # prompts that are given to the session together; it makes batches of them
Wanted = Target | InputError


@dataclass
class Run:
    """One command's settings, and what became of its pictures so far."""

    out: Output
    run_seed: int
    force: bool = False
    skip_existing: bool = False
    metadata: bool = True
    fail_fast: bool = False
    listed: bool = False  # prompts come from a list: a bad one does not stop the others
    journal: Journal | None = None
    sheet: Target | None = None  # --grid: the one file for all pictures
    screen: showing.Screen | None = None  # --show: where pictures are shown, too
    drawn: int = 0
    failed: int = 0
    skipped: int = 0

    def ready(self, planned: Iterable[Wanted]) -> Iterator[Wanted]:
        """The targets that are not done yet, their paths checked; in place of a bad one its error."""
        seen: set[Path] = set()
        for target in planned:
            if isinstance(target, InputError):
                yield target
                continue
            if target.path is None:
                self.out.refuse_terminal()
                yield target
                continue
            if self.journal is not None and self.journal.count and self.journal.holds((target.prompt, target.seed)):
                self.skipped += 1
                continue
            if self.skip_existing and target.path.is_file():
                self.skipped += 1
                continue
            try:
                if target.path in seen:
                    raise InputError(f"{target.path}: would be written twice", hint="put {n} or {seed} into --output")
                seen.add(target.path)
                targets.check(target.path, self.force or self.is_ours(target))
                yield target
            except InputError as error:
                yield error

    def is_ours(self, target: Target) -> bool:
        """Whether a file is the picture itself, written by a run that was killed before its journal had it."""
        if self.journal is None or target.path is None or not target.path.is_file():
            return False
        from PIL import Image

        try:
            with Image.open(target.path) as image:
                text = getattr(image, "text", {})
        except OSError:
            return False
        return text.get("prompt") == target.prompt and text.get("seed") == str(target.seed)

    def before_any_work(self, ready: Iterator[Wanted]) -> Iterator[Wanted]:
        """The same targets, after checking that there is something to draw, before any model is loaded.

        With a list, bad targets before the first good one are reported. Without a list the first bad one is raised.
        """
        if not self.listed:
            wanted = list(ready)
            for target in wanted:
                if isinstance(target, InputError):
                    raise target
            return iter(wanted)
        for target in ready:
            if isinstance(target, Target):
                return chain([target], ready)
            self.fail(target)
            if self.fail_fast:
                break
        return iter(())

    def fail(self, error: InputError) -> None:
        """Reports and counts the error of one picture."""
        self.failed += 1
        self.out.error(error.message, error.hint)

    def draw(
        self,
        session: "Session",
        wanted: Iterable[Wanted],
        settings: dict[str, float | int],
        batch_size: int | None,
        steady: bool,
        watch: "Callable[[DrawingEvent], None] | None" = None,
    ) -> "Iterator[tuple[Target, ImageEvent] | InputError]":
        """The wanted pictures in order, each as soon as it is drawn; in place of a bad one its error."""
        from omnimamba_cli.engine import pipeline

        sampling = replace(session.config.image_sampling, **settings) if settings else None  # type: ignore[arg-type]
        most = max(AT_ONCE, batch_size or 0)
        cut: set[str] = set()
        ahead = pipeline.Ahead(wanted, lambda target: target, ahead=2 * most, threads=1)
        try:
            for chunk in pipeline.chunks(ahead, most=most, steady=steady):
                items: list[Wanted] = []
                for slot in chunk:
                    if slot.error is not None:
                        raise slot.error
                    items.append(slot.item)
                good = [item for item in items if isinstance(item, Target) and not self.came_meanwhile(item)]
                for target in good:
                    self.tell_cut(session, target.prompt, cut)
                events = session.stream_generate(
                    [t.prompt for t in good],
                    seed=[t.seed for t in good],
                    sampling=sampling,
                    batch_size=batch_size,
                    watch=watch,
                )
                pictures = ((good[event.index], event) for event in events)
                for item in items:
                    if isinstance(item, InputError):
                        yield item
                    elif item in good:
                        yield next(pictures)
        finally:
            ahead.close()

    def came_meanwhile(self, target: Target) -> bool:
        """Whether another process has written the file meanwhile and --skip-existing allows that; counts it."""
        there = self.skip_existing and target.path is not None and target.path.is_file()
        self.skipped += there
        return there

    def tell_cut(self, session: "Session", prompt: str, told: set[str]) -> None:
        """Says once for each prompt that it is longer than what the model reads."""
        if prompt not in told and session.prompt_was_cut(prompt):
            told.add(prompt)
            most, name = session.config.caption_tokens, session.config.name
            self.out.note(f"prompt {shortened(prompt)!r} is longer than the {most} tokens {name} reads; cut")

    def keep(self, session: "Session", target: Target, event: "ImageEvent") -> None:
        """Writes one picture and prints its path. Raises InputError for a name that was taken meanwhile."""
        data = encode(target, event, session.config.name if self.metadata else None)
        if target.path is None:
            self.out.binary(data)
            self.drawn += 1
            return
        try:
            targets.write_whole(target.path, data, self.force or self.is_ours(target))
        except InputError:
            if self.skip_existing and target.path.is_file():
                self.skipped += 1
                return
            raise
        self.drawn += 1
        self.out.detail(f"{target.path}: {event.seconds:.1f} s")
        fields: dict[str, object] = {
            "path": str(target.path),
            "prompt": target.prompt,
            "seed": target.seed,
            "run_seed": self.run_seed,
            "width": event.image.width,
            "height": event.image.height,
            "format": target.format,
            "seconds": round(event.seconds, 3),
            "model": session.config.name,
        }
        if self.journal is not None:
            self.journal.add(fields)
        elif self.out.json:
            self.out.record(fields)
        else:
            self.out.line(str(target.path))

    def keep_all(
        self,
        session: "Session",
        wanted: Iterable[Wanted],
        settings: dict[str, float | int],
        batch_size: int | None,
        steady: bool,
    ) -> None:
        """Draws and writes what is wanted; errors are reported, and the others go on."""
        begun = perf_counter()
        with self.out.progress("drawing") as bar:
            watch = showing.follow(bar, self.screen) if bar.shown else None
            drawn = self.draw(session, wanted, settings, batch_size, steady, watch)
            for found in grids.gathered(drawn, self.sheet):
                try:
                    if isinstance(found, InputError):
                        raise found
                    if self.screen is not None:
                        self.screen.show(found[1].image)
                    self.keep(session, *found)
                except InputError as error:
                    self.fail(error)
                    if self.fail_fast:
                        break
        self.out.detail(f"{self.drawn} pictures in {perf_counter() - begun:.1f} s")

    def rehearse(self, ready: Iterable[Wanted]) -> int:
        """`--dry-run`: what would be drawn, from which seed and into which file."""
        for target in ready:
            if isinstance(target, InputError):
                self.fail(target)
                continue
            self.drawn += 1
            path = "-" if target.path is None else str(target.path)
            if self.out.json:
                self.out.record({"path": path, "prompt": target.prompt, "seed": target.seed, "format": target.format})
            else:
                self.out.line(f"{path}\t{target.seed}\t{' '.join(target.prompt.split())}")
        return self.sum_up()

    def sum_up(self) -> int:
        """Reports how many pictures failed or were skipped; returns the exit code."""
        if self.skipped:
            self.out.note(f"{self.skipped} were done before")
        if self.failed:
            self.out.note(f"{self.failed} of {self.failed + self.drawn} pictures failed")
        if self.failed == 1 and not self.drawn + self.skipped:
            return ExitCode.INPUT  # there were no others
        return ExitCode.SOME_FAILED if self.failed else ExitCode.DONE


def journal_key(record: Record) -> Key:
    """The key of a journal's line."""
    return record["prompt"], record["seed"]


def encode(target: Target, event: "ImageEvent", model: str | None) -> bytes:
    """The bytes of a picture file; a PNG says how it was made when `model` is given."""
    from PIL.PngImagePlugin import PngInfo

    buffer = io.BytesIO()
    if target.format != "png":
        event.image.save(buffer, target.format, quality=95)
        return buffer.getvalue()
    info = PngInfo()
    if model is not None:
        fields = {"prompt": target.prompt, "seed": str(target.seed), "model": model, "version": __version__}
        for key, value in fields.items():
            info.add_itxt(key, value)
    event.image.save(buffer, "png", pnginfo=info)
    return buffer.getvalue()


def shortened(text: str) -> str:
    """At most forty characters of a text, for a remark."""
    return text if len(text) <= 40 else f"{text[:37]}..."
