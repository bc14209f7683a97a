"""`data check`: which training samples can be used, which cannot and why, and how they become tokens.

Every sample is read, and every picture's header; a part of the pictures (or all) is decoded.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from omnimamba_cli.config import BAD_SHARE, ModelConfig, Task
from omnimamba_cli.data.codes import codes_of
from omnimamba_cli.data.pictures import SketchMaker, captions
from omnimamba_cli.data.records import captions_of, read_records
from omnimamba_cli.data.rejects import Bad, Rejects
from omnimamba_cli.data.samples import Raw, Samples, draws
from omnimamba_cli.data.shards import ShardSamples, is_shards
from omnimamba_cli.data.talks import TalkMaker
from omnimamba_cli.data.tokenizer import TextTokenizer
from omnimamba_cli.engine.data_layout import Layout, drawing_layout, talk_layout
from omnimamba_cli.engine.opening import holds_codes, open_samples
from omnimamba_cli.errors import InputError
from omnimamba_cli.train.events import Progress

Kind = Literal["malformed", "picture", "codes", "too long", "cut", "duplicate"]
REMARKS: tuple[Kind, ...] = ("cut", "duplicate")  # trained on all the same
CHUNK = 512  # samples looked at together
READERS = 8  # threads that open pictures


@dataclass(frozen=True, kw_only=True)
class CheckSettings:
    """What to look at, and for which model."""

    config: ModelConfig
    tokenizer: TextTokenizer
    image_root: Path | None = None
    task: Task | None = None  # None: codes are t2i, everything else mmu
    decode: int | None = 256  # pictures read whole, about; None: all
    examples: int = 1  # layouts a file
    listed: int = 5  # samples named for each problem
    limit: float = BAD_SHARE
    seed: int = 0


@dataclass
class Problem:
    """How many samples have it, and the first of them."""

    count: int = 0
    first: list[tuple[str, str]] = field(default_factory=list)  # name, reason


@dataclass
class FileReport:
    """The result for one file, folder or set of shards."""

    path: str
    kind: str = ""
    samples: int = 0
    usable: int = 0
    pictures: int = 0
    decoded: int = 0
    tokens_mean: float = 0.0  # of text a sample
    tokens_most: int = 0
    problems: dict[Kind, Problem] = field(default_factory=dict)
    examples: list[Layout] = field(default_factory=list)
    error: str | None = None  # why it cannot be trained on at all
    hint: str | None = None

    @property
    def bad(self) -> int:
        """Samples that training would skip."""
        return self.samples - self.usable

    def to_dict(self) -> dict[str, Any]:  # Any: JSON
        """A JSON object, without the examples."""
        data = asdict(self)
        del data["examples"]
        for kind, problem in data["problems"].items():
            problem["skipped"] = kind not in REMARKS
            problem["first"] = [{"name": name, "reason": reason} for name, reason in problem["first"]]
        return data


def check_file(path: Path, settings: CheckSettings) -> Iterator[Progress | FileReport]:
    """Progress, and at the end the report; where nothing can be read, its `error` says why."""
    work = _Check(path, settings)
    try:
        yield from work.codes() if not is_shards(path) and holds_codes(path) else work.samples()
    except InputError as error:
        work.report.error, work.report.hint = error.message, error.hint
    yield work.report


class _Check:
    """One file's check in the making."""

    def __init__(self, path: Path, settings: CheckSettings) -> None:
        self.path, self.settings = path, settings
        self.config, self.tokenizer = settings.config, settings.tokenizer
        self.report = FileReport(str(path))
        self.ids: set[str] = set()
        self.tokens: list[int] = []

    def add(self, kind: Kind, name: str, reason: str) -> None:
        problem = self.report.problems.setdefault(kind, Problem())
        problem.count += 1
        if len(problem.first) < self.settings.listed:
            problem.first.append((name, reason))

    def duplicate(self, key: Any, name: str) -> None:  # Any: ids are strings or numbers
        if str(key) in self.ids:
            self.add("duplicate", name, f"its id {key!r} has been there before")
        self.ids.add(str(key))

    def done(self, rejects: Rejects) -> None:
        """Add what reading rejected, and decide whether enough is left to train on."""
        report = self.report
        for name, reason in rejects.reasons.items():
            self.add("malformed", name, reason)
        report.samples += len(rejects.reasons)
        if self.tokens:
            report.tokens_mean, report.tokens_most = round(float(np.mean(self.tokens)), 1), max(self.tokens)
        if not report.usable:
            report.error = f"no sample of {report.path} can be used"
        elif report.bad > self.settings.limit * report.samples:
            report.error = (
                f"{report.bad:,} of {report.samples:,} samples of {report.path} are bad, "
                f"more than {100 * self.settings.limit:.4g}%: training refuses them"
            )
        if report.error:
            report.hint = "repair what is listed, check --image-root, or raise --max-bad-share"

    def codes(self) -> Iterator[Progress]:
        """Codes with captions."""
        rejects, report = Rejects(), self.report
        report.kind = "codes"
        for name, record in read_records(self.path, rejects):
            report.samples += 1
            try:
                codes_of(record, self.config.vq)
            except ValueError as error:
                self.add("codes", name, str(error))
                continue
            try:
                said = captions_of(record)
            except ValueError as error:
                self.add("malformed", name, str(error))
                continue
            report.usable += 1
            if "id" in record:
                self.duplicate(record["id"], name)
            ids = self.tokenizer.encode_batch(said)
            self.captions(name, ids)
            if len(report.examples) < self.settings.examples:
                layout = drawing_layout(self.config, self.tokenizer, ids[0])
                report.examples.append(Layout(name, None, layout))
            if report.samples % CHUNK == 0:
                yield _progress(report.samples, 0)
        self.done(rejects)

    def captions(self, name: str, ids: Sequence[Sequence[int]]) -> None:
        room = self.config.caption_tokens
        self.tokens += map(len, ids)
        if longest := [i for i in ids if len(i) > room]:
            self.add("cut", name, f"a caption has {len(longest[0])} tokens and is cut to {room}")

    def samples(self) -> Iterator[Progress]:
        """Pictures with captions or conversations, files or shards."""
        seed, report = self.settings.seed, self.report
        drawing = self.settings.task == "t2i"
        sketches = SketchMaker(self.config, self.tokenizer, seed=seed)
        talks = TalkMaker(self.config, self.tokenizer, questions=True, seed=seed)
        maker = sketches if drawing else talks
        samples = open_samples([self.path], self.settings.image_root, maker, seed=seed, limit=1.0)
        report.kind = "shards" if isinstance(samples, ShardSamples) else "pictures and words"
        if isinstance(samples, Samples):
            self.repeated()
        every = samples.raws()
        wanted = 1.0 if self.settings.decode is None else self.settings.decode / len(samples)
        decodes = iter((draws(seed, np.arange(len(samples)), 99) < wanted).tolist())
        with ThreadPoolExecutor(READERS) as pool:
            while raws := list(islice(every, CHUNK)):
                looks = pool.map(_picture, raws, islice(decodes, len(raws)))
                for raw, look in zip(raws, looks, strict=True):
                    self.one(raw, look, talks, drawing=drawing)
                yield _progress(report.samples, len(samples))
        self.done(samples.rejects)

    def one(self, raw: Raw | Bad, look: "_Look", talks: TalkMaker, *, drawing: bool) -> None:
        """Count a sample."""
        report = self.report
        report.samples += 1
        report.decoded += look.decoded
        if isinstance(raw, Bad):
            self.add("malformed", raw.name, raw.reason)
            return
        report.pictures += raw.picture is not None
        if look.problem:
            self.add("picture", raw.name, look.problem)
            return
        spans: Any
        try:
            if drawing:
                ids = self.tokenizer.encode_batch(captions(raw))
                self.captions(raw.name, ids)
                spans = drawing_layout(self.config, self.tokenizer, ids[0])
            else:
                words, targets = talks.words(raw, 0)
                self.talk(raw, talks, words)
                shown = raw.picture is not None
                spans = talk_layout(self.config, self.tokenizer, words, targets, shown=shown)
        except InputError as error:
            self.add("malformed" if drawing else "too long", raw.name, error.message)
            return
        report.usable += 1
        if len(report.examples) < self.settings.examples:
            report.examples.append(Layout(raw.name, look.size, spans))

    def talk(self, raw: Raw, talks: TalkMaker, ids: Sequence[int]) -> None:
        """Count text tokens; remark on answers that are cut or left out."""
        room = self.config.max_text_tokens
        self.tokens.append(len(ids))
        turns = talks.turns(raw, 0)
        answers = sum(token == self.config.text.eos_id for token in ids)
        if not answers:
            self.add("cut", raw.name, f"its first answer goes past {room} tokens and is cut there, without an end")
        elif answers < len(turns):
            self.add("cut", raw.name, f"only {answers} of {len(turns)} answers fit into {room} tokens")

    def repeated(self) -> None:
        """Remark on ids that stand twice."""
        for name, record in read_records(self.path, Rejects()):
            if "id" in record:
                self.duplicate(record["id"], name)


@dataclass(frozen=True)
class _Look:
    problem: str | None = None
    size: str | None = None
    decoded: bool = False


def _picture(raw: Raw | Bad, decode: bool) -> _Look:
    """A sample's picture, read in a thread."""
    if isinstance(raw, Bad) or raw.picture is None:
        return _Look()
    try:
        width, height = raw.open().size if decode else raw.size()
    except InputError as error:
        return _Look(error.message, decoded=decode)
    return _Look(None, f"{width}x{height}", decode)


def _progress(step: int, steps: int) -> Progress:
    return Progress(step=step, steps=steps, values={}, seconds=0.0)
