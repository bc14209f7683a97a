"""What `omnimamba caption` does after its options are parsed: pictures in, a result for each out, in order."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from time import perf_counter, process_time
from typing import TYPE_CHECKING

from omnimamba_cli.cli import models, targets
from omnimamba_cli.cli.inputs import Picture
from omnimamba_cli.cli.jobs import Answer, Job, Loaded
from omnimamba_cli.cli.journal import Journal, Key, Record
from omnimamba_cli.cli.options import DecodingOptions
from omnimamba_cli.cli.output import Output, printable
from omnimamba_cli.errors import ExitCode, InputError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from omnimamba_cli.config import SamplingConfig
    from omnimamba_cli.engine.events import CaptionResult, FinishReason, TextEvent
    from omnimamba_cli.engine.session import Session


@dataclass
class Run:
    """One command's settings and counts. The model is loaded only when a first picture could be read."""

    out: Output
    question: str | None
    settings: dict[str, float | int]
    seed: int | None
    where: DecodingOptions
    names: bool  # put each picture's name before its answer
    template: str | None  # of the question
    output: str | None = None  # template for the names of answers' files
    force: bool = False
    skip_existing: bool = False
    steady: bool = True  # batches do not depend on timing
    alone: bool = False  # there is only one input: its error ends the run
    journal: Journal | None = None
    failed: int = 0
    skipped: int = 0
    _opened: "tuple[Session, SamplingConfig] | None" = None

    def open(self) -> "tuple[Session, SamplingConfig]":
        """The session and its sampling, loaded the first time. Chooses and reports a seed where one is needed."""
        if self._opened is None:
            session = models.open_session(self.out, self.where, task="mmu")
            sampling = replace(session.config.caption_sampling, **self.settings)  # type: ignore[arg-type]  # by field
            if sampling.temperature > 0 and self.seed is None:
                self.seed = models.new_seed()
                self.out.note(f"seed {self.seed}")
            self._opened = session, sampling
        return self._opened

    def stream(self, picture: Picture) -> None:
        """One picture, its caption shown piece by piece."""
        image = read_picture(picture)
        session, sampling = self.open()
        events = session.stream_caption(
            image, self.question, sampling=sampling, seed=self.seed, template=self.template, last=True
        )
        if self.show_pieces(picture, events) == "length":
            self.out.detail(f"the caption ends after {sampling.max_new_tokens} tokens (--max-new-tokens)")

    def show_pieces(self, picture: Picture, events: "Iterable[TextEvent]") -> "FinishReason | None":
        """An answer as it is written, on one line after the picture's name where names are wanted; why it ended."""
        if self.names:
            self.out.piece(f"{printable(picture.name)}\t")
        reason = None
        for event in events:
            text = folded(event.text) if self.names else event.text
            if text:
                self.out.piece(text)
            reason = event.finish_reason
        self.out.line("")
        return reason

    def batch(
        self, pictures: Iterable[Picture | InputError], total: int | None, batch_size: int | None, fail_fast: bool
    ) -> int:
        """Many pictures, one line each; a bad picture is reported and skipped. Returns the exit code."""
        shown, begun, cpu = 0, perf_counter(), process_time()
        with self.out.progress("looking", total=total) as bar:
            for job, answer in self.answers(pictures, batch_size):
                try:
                    if isinstance(answer, InputError):
                        raise answer
                    shown += self.show_job(job, *answer)
                except InputError as error:
                    self.fail(error)
                    if fail_fast:
                        break
                bar.advance()
        return self.sum_up(shown, perf_counter() - begun, process_time() - cpu)

    def fail(self, error: InputError) -> None:
        """Reports and counts the error of one input; raises it if that is the only input."""
        if self.alone:
            raise error
        self.failed += 1
        self.out.error(error.message, error.hint)

    def rehearse(self, pictures: Iterable[Picture | InputError]) -> int:
        """`--dry-run`: what would be looked at, and where its answer would go; reads no picture, opens no model."""
        shown = 0
        for job in self.jobs(pictures):
            try:
                if isinstance(job.picture, InputError):
                    raise job.picture
                if job.picture.name != "-" and not job.picture.from_web:
                    job.picture.source()
            except InputError as error:
                self.fail(error)
                continue
            shown += 1
            path = None if job.path is None else str(job.path)
            if self.out.json:
                self.out.record({"image": job.picture.name, "question": self.question_of(job.picture), "output": path})
            else:
                self.out.line(
                    "\t".join(map(printable, [job.picture.name] if path is None else [job.picture.name, path]))
                )
        return self.sum_up(shown, 0.0, 0.0)

    def sum_up(self, shown: int, seconds: float, cpu_seconds: float) -> int:
        """Reports how many inputs failed or were skipped; returns the exit code."""
        if self.skipped:
            self.out.note(f"{self.skipped} were done before")
        self.out.detail(
            f"{shown} answers in {seconds:.1f} s, {shown / max(seconds, 1e-9):.1f} a second; {cpu_seconds:.1f} s of CPU"
        )
        if self.failed:
            self.out.note(f"{self.failed} of {shown + self.failed} pictures failed")
        if self.failed == 1 and not shown + self.skipped:
            return ExitCode.INPUT  # there were no others
        return ExitCode.SOME_FAILED if self.failed else ExitCode.DONE

    def jobs(self, pictures: Iterable[Picture | InputError]) -> Iterator[Job]:
        """A job for each picture that is not done yet, its output path checked; in place of a bad one its error."""
        taken: set[Path] = set()
        for index, picture in enumerate(pictures):
            if isinstance(picture, InputError):
                yield Job(index, picture)
                continue
            if self.is_done(picture):
                self.skipped += 1
                continue
            try:
                path = self.path_of(index, picture)
                if path is not None and self.skip_existing and path.is_file():
                    self.skipped += 1
                    continue
                if path is not None:
                    # an existing file may be what a killed run wrote last: `put` compares
                    targets.check(path, self.force or (self.journal is not None and path.is_file()))
                    if path in taken:
                        raise InputError(f"{path}: is named by two pictures", hint="put {n} or {dir} into --output")
                    taken.add(path)
                yield Job(index, picture, path)
            except InputError as error:
                yield Job(index, error)
            except UsageError as error:
                if picture.output is None:
                    raise
                yield Job(index, InputError(error.message, hint=error.hint))  # of this line alone

    def path_of(self, index: int, picture: Picture) -> Path | None:
        """Where a picture's answer goes; None is stdout."""
        template = picture.output or self.output
        if template is None or template == "-":
            return None
        name = Path(picture.name if picture.name != "-" else "stdin")
        values = {"stem": name.stem, "name": name.name, "dir": str(name.parent), "n": str(index + 1)}
        return Path(targets.fill(template, values))

    def answers(
        self, pictures: Iterable[Picture | InputError], batch_size: int | None
    ) -> "Iterator[tuple[Job, Answer | InputError]]":
        """Every job in order, with its answer or its error. The model is loaded after the first good picture."""
        from omnimamba_cli.engine import pipeline

        if self.journal is not None and self.journal.count:
            self.check_journal(self.journal)
        jobs = self.jobs(pictures)
        for first in jobs:
            try:
                loaded = self.load(first)
                break
            except InputError as error:
                yield first, error
        else:
            return
        session, _ = self.open()
        shares = pipeline.shares(session.config, session.device.type)
        size = batch_size or shares.count * pipeline.batch_size(session.config, session.device.type)
        side = session.config.vision_image_size

        def load(job: Job) -> Loaded:
            return self.load(job, side) if job is not first else loaded

        ahead = pipeline.Ahead(chain([first], jobs), load, ahead=2 * size)
        try:
            ask = partial(shares, self.ask)
            yield from pipeline.in_batches(ahead, self.shape, ask, size=size, steady=self.steady)
        finally:
            ahead.close()
            shares.close()

    def load(self, job: Job, side: int | None = None) -> Loaded:
        """Read, decode and, with `side`, scale a picture as the model sees it; hash its file if results show it."""
        from omnimamba_cli.data.reading import load_image, squashed

        if isinstance(job.picture, InputError):
            raise job.picture
        data = job.picture.data()
        digest = None
        if self.out.json or self.journal is not None:
            from hashlib import sha256

            digest = sha256(data).hexdigest()
        image = load_image(data, name=job.picture.name)
        return Loaded(squashed(image, side) if side else image, digest)

    def question_of(self, picture: Picture) -> str | None:
        """A picture's own question, or the one for all."""
        return self.question if picture.question is None else picture.question

    def seed_of(self, job: Job) -> int | None:
        """A picture's own seed; else picture i of the run has seed + i, however the others end."""
        if isinstance(job.picture, Picture) and job.picture.seed is not None:
            return job.picture.seed
        return None if self.seed is None else self.seed + job.index

    def shape(self, job: Job, loaded: Loaded) -> int:
        """What the pictures of a batch must have in common: the length of the question."""
        return self.open()[0].question_length(self.question_of(picture_of(job)), self.template)

    def ask(self, rows: Sequence[tuple[Job, Loaded]]) -> "list[Answer]":
        """The answers of one batch."""
        session, sampling = self.open()
        seeds = [self.seed_of(job) for job, _ in rows]
        results = session.captions(
            [loaded.image for _, loaded in rows],
            [self.question_of(picture_of(job)) for job, _ in rows],
            sampling=sampling,
            seed=[0 if seed is None else seed for seed in seeds],  # unused at temperature 0
            template=self.template,
        )
        return [Answer(result, loaded.sha256) for result, (_, loaded) in zip(results, rows, strict=True)]

    def show_job(self, job: Job, result: "CaptionResult", sha256: str | None) -> bool:
        """Shows a job's result; False if another process wrote the file meanwhile and --skip-existing allows that."""
        try:
            self.show(picture_of(job), result, self.seed_of(job), sha256=sha256, path=job.path)
        except InputError:
            if self.skip_existing and job.path is not None and job.path.is_file():
                self.skipped += 1
                return False
            raise
        return True

    def show(
        self,
        picture: Picture,
        result: "CaptionResult",
        seed: int | None,
        *,
        sha256: str | None = None,
        path: Path | None = None,
    ) -> None:
        """One result: into its file or the journal, as a JSON line, or as text."""
        if path is not None:
            self.put(path, f"{result.text}\n".encode())
        if not self.out.json and self.journal is None:
            name = f"{printable(picture.name)}\t" if self.names else ""
            text = folded(result.text) if self.names else result.text
            self.out.line(name + text if path is None else str(path))
            return
        session, sampling = self.open()
        fields: dict[str, object] = {
            "image": picture.name,
            "sha256": sha256,
            "question": self.question_of(picture) or session.config.default_question,
            "text": result.text,
            "caption": result.text,
            "finish_reason": result.finish_reason,
            "tokens": result.tokens,
            "seconds": round(result.seconds, 3),
            "seed": seed if sampling.temperature > 0 else None,
            "model": session.config.name,
        }
        if path is not None:
            fields["output"] = str(path)
        if self.journal is not None:
            self.journal.add(fields)
        else:
            self.out.record(fields)

    def put(self, path: Path, data: bytes) -> None:
        """Writes an answer into its file, unless a run that was killed before journalling it wrote the same there."""
        there = self.journal is not None and path.is_file() and path.read_bytes() == data
        if not there:
            targets.write_whole(path, data, self.force)

    def is_done(self, picture: Picture) -> bool:
        """Whether the journal holds a picture's answer. Never for stdin, which is another picture each time."""
        if self.journal is None or not self.journal.count or picture.name == "-":
            return False
        return self.journal.holds(self.key(picture))

    def key(self, picture: Picture) -> Key:
        """The key of a picture's result in the journal."""
        return picture.name, self.question_of(picture) or self.open()[0].config.default_question

    def check_journal(self, journal: Journal) -> None:
        """Raises InputError for a journal with answers of another model."""
        name, found = self.open()[0].config.name, (journal.last or {}).get("model")
        if found != name:
            raise InputError(f"{journal.path}: holds answers of {found}, this run's would be of {name}")


def picture_of(job: Job) -> Picture:
    """The picture of a job that is known to be a good one."""
    assert isinstance(job.picture, Picture)
    return job.picture


def journal_key(record: Record) -> Key:
    """The key of a journal's line."""
    return record["image"], record["question"]


def read_picture(picture: Picture) -> "Image":
    """A decoded picture. Raises InputError, which has the name that the user wrote."""
    from omnimamba_cli.data.reading import load_image

    return load_image(picture.data(), name=picture.name)


def folded(text: str) -> str:
    """On one line: line ends and tabs become spaces."""
    return text.replace("\r\n", " ").replace("\n", " ").replace("\r", " ").replace("\t", " ")
