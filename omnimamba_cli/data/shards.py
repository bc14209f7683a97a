"""WebDataset shards: tar files of samples (KEY.jpg with KEY.txt or KEY.json), read from end to end as they come.

The rows of a step are divided among lanes: row i of B reads from lane i * LANES // B. A lane goes through its own share
of the shards, in a new order each epoch, and shuffles BLOCK samples at a time. So the order is a function of seed and
step, whatever the number of workers and processes; a process opens only the shards of its own lanes; and a resumed run
opens the shard that its step is in and reads past the samples before it. For that, the samples of each shard must be
counted: local files when they are opened, remote ones beforehand, into a list (`omnimamba data index`).
"""

import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from omnimamba_cli.config import BAD_SHARE
from omnimamba_cli.data.files import DataFile
from omnimamba_cli.data.records import IMAGE_SUFFIXES, Record, utf_8
from omnimamba_cli.data.rejects import Bad, Rejects
from omnimamba_cli.data.samples import Maker, Raw, make, words_of
from omnimamba_cli.errors import DataError, InputError, UsageError, file_reason
from omnimamba_cli.json_text import parse

if TYPE_CHECKING:
    from omnimamba_cli.data.mixing import Split

TARS = (".tar", ".tgz", ".tar.gz")
LIST = ".shards.jsonl"  # lines {"shard": path or URL, "samples": number}
META = re.compile(r"__[^/]*__($|/)")  # members that are no samples
LANES = 32  # at most; fewer where there are fewer shards or rows
BLOCK = 128  # samples of a lane that are mixed


@dataclass(frozen=True)
class Shard:
    """A tar file, local or behind a URL (https:, pipe:...), and how many samples it holds."""

    url: str
    samples: int


def is_shards(path: Path | str) -> bool:
    """Whether a data argument names shards: a tar file, several by braces ({000..099}.tar), or a list of them."""
    return str(path).endswith((*TARS, LIST))


def find_shards(path: Path | str, rejects: Rejects) -> list[Shard]:
    """The shards that an argument names, counted. Raises InputError for a missing file, DataError for a bad list."""
    text = str(path)
    if text.endswith(LIST):
        return _listed(Path(text))
    found = []
    for url in expanded(text):
        if is_remote(url):
            raise UsageError(
                f"{url}: how many samples it holds is not known", hint=f"omnimamba data index '{text}' -o all{LIST}"
            )
        found.append(Shard(url, count_local(Path(url), rejects)))
    return found


def expanded(text: str) -> list[str]:
    """The shards behind braces: a-{00..02}.tar is three."""
    found: list[str] = _library().shardlists.expand_urls(text)
    return found


def is_remote(url: str) -> bool:
    """Whether a shard is read over the network or from a program (pipe:)."""
    return url.startswith("pipe:") or "://" in url


def _library() -> Any:  # Any: the module, of an optional package
    try:
        import webdataset
    except ImportError as error:
        raise UsageError(f"tar shards are read by webdataset ({error})", hint="pip install webdataset") from error
    return webdataset


def _listed(path: Path) -> list[Shard]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        reason = file_reason(error) if isinstance(error, OSError) else str(error)
        raise InputError(f"{path}: {reason}") from None
    return [_line(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _line(path: Path, number: int, line: str) -> Shard:
    """A line of a list."""
    try:
        row = parse(line)
        url, samples = row["shard"], row["samples"]
        if not isinstance(samples, int) or samples < 0:
            raise ValueError(f"samples is {samples!r}")
        # a relative path means: beside the list
        return Shard(url if is_remote(url) else str(path.parent / url), samples)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}:{number}: no shard with its number of samples ({error})", hint="omnimamba data index makes lists"
        ) from None


def count_local(path: Path, rejects: Rejects) -> int:
    """Number of samples in a local tar file, by its headers. A cut-off one is a reject, but its whole samples count."""
    names: list[str] = []
    try:
        with tarfile.open(path) as file:
            names.extend(member.name for member in file if member.isreg())
    except OSError as error:
        raise InputError(f"{path}: {file_reason(error)}") from None
    except (tarfile.TarError, EOFError) as error:
        names = names[:-1]  # the last header's content is not whole
        # further lines tell of every compression that was tried
        reason = str(error).split("\n")[0].rstrip(":")
        rejects.add(str(path), f"the tar file is damaged or cut off ({reason})")
    return sum(1 for _ in _grouped({"fname": name, "data": b"", "__url__": ""} for name in names))


def count(url: str) -> int:
    """Number of samples in any shard, by reading all of it."""
    return sum(1 for _ in samples_of(url))


def _grouped(files: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Tar members grouped into samples, by webdataset's rules."""
    kept = (f for f in files if not META.match(f["fname"]))
    found: Iterator[dict[str, Any]] = _library().tariterators.group_by_keys(kept)
    return found


def _promised(shard: Shard, found: int) -> DataError:
    """The error for a shard that holds fewer samples than it was counted with."""
    return DataError(
        f"{shard.url} holds {found} samples, not {shard.samples} as its list says",
        hint="omnimamba data index makes the list anew",
    )


def samples_of(url: str) -> Iterator[Raw | Bad]:
    """A shard's samples in order, undecoded. Raises InputError at the place from which it cannot be read."""
    errors: list[Exception] = []

    def stop(error: Exception) -> bool:
        errors.append(error)
        return False  # the library ends the shard and gives what it has read

    number = 0
    for fields in _library().tariterators.tarfile_samples([{"url": url}], handler=stop):
        number += 1
        yield _sample(f"{url}[{fields['__key__']}]", fields)
    if errors:
        reason = errors[0].args[0] if errors[0].args else errors[0]
        raise InputError(f"{url} cannot be read after sample {number}: {reason}", hint="fetch it again") from errors[0]


def _sample(name: str, fields: dict[str, Any]) -> Raw | Bad:  # Any: bytes, and strings of the library
    try:
        picture = next((fields[s[1:]] for s in IMAGE_SUFFIXES if s[1:] in fields), None)
        words = words_of(_record(fields), picture is not None)
    except ValueError as error:
        return Bad(name, str(error))
    return Raw(name, picture, words.get("t"), words.get("c"))


def _record(fields: dict[str, Any]) -> Record:
    """The words of a sample: KEY.json where it has conversations or captions, else the lines of KEY.txt."""
    record: Record = {}
    if "json" in fields:
        value = parse(fields["json"])  # UnicodeDecodeError is a ValueError, too
        record = value if isinstance(value, dict) else {}
    if "txt" in fields and not record.keys() & {"conversations", "captions", "caption"}:
        words = utf_8(fields["txt"].decode("utf-8-sig", "surrogateescape"))
        return {"captions": [line.strip() for line in words.splitlines()]}
    return record


class ShardSamples(torch.utils.data.Dataset[Any]):  # Any: Made | Bad
    """Makes training items of the samples that ShardSampler has read. A bad one is left out of its batch."""

    def __init__(self, paths: Sequence[Path], maker: Maker, *, limit: float = BAD_SHARE) -> None:
        self.maker = maker
        self.rejects = Rejects(limit)
        self.shards = [shard for path in paths for shard in find_shards(path, self.rejects)]
        if not len(self):
            raise self.rejects.none_left(paths)
        self.files = [DataFile.opened(shard.url, shard.samples) for shard in self.shards]

    def __len__(self) -> int:
        return sum(shard.samples for shard in self.shards)

    def raws(self) -> Iterator[Raw | Bad]:
        """Every sample as it lies in the shards."""
        return (raw for _, raw in self.in_order(0, len(self)))

    def in_order(self, start: int, end: int) -> Iterator[tuple[int, Raw | Bad]]:
        """Keys of the samples start to end, in the shards' order; reads the shards to make them."""
        at = 0
        for shard in self.shards:
            first, last = max(start - at, 0), min(end - at, shard.samples)
            if first < last:
                read = 0
                for raw in islice(samples_of(shard.url), last):
                    if read >= first:
                        yield at + read, raw
                    read += 1
                if read < last:
                    raise _promised(shard, read)
            at += shard.samples

    def __getitem__(self, key: tuple[int, Raw | Bad]) -> Any:  # Any: Made | Bad
        """The item of (position in the run, sample)."""
        position, raw = key
        return raw if isinstance(raw, Bad) else make(self.maker, raw, position)


class ShardSampler(torch.utils.data.Sampler[list[tuple[int, Raw | Bad]]]):
    """Batches of (position, sample) from a step on, without end; reads the shards itself, in the order of the rows."""

    def __init__(self, shards: Sequence[Shard], seed: int, split: "Split", step: int) -> None:
        self.shards = [shard for shard in shards if shard.samples]
        self.seed, self.split, self.step = seed, split, step
        self.lanes = min(LANES, len(self.shards), split.rows)

    def __iter__(self) -> Iterator[list[tuple[int, Raw | Bad]]]:
        rows = self.split.rows
        opened: dict[int, Lane] = {}
        for positions in self.split.from_step(self.step):
            batch = []
            for position in positions.tolist():
                step, row = divmod(position, rows)
                number = row * self.lanes // rows
                # rows of lane n are first to last
                first, last = (-(-rows * n // self.lanes) for n in (number, number + 1))
                if number not in opened:
                    opened[number] = Lane(self.shards, number, self.lanes, self.seed)
                batch.append((position, opened[number].sample(step * (last - first) + row - first)))
            yield batch


class Lane:
    """An endless row of samples: every lanes-th shard of an epoch's order, shuffled in blocks. Ask in rising order."""

    def __init__(self, shards: Sequence[Shard], number: int, lanes: int, seed: int) -> None:
        self.shards, self.number, self.lanes, self.seed = shards, number, lanes, seed
        self.epoch, self.before = 0, 0  # samples of earlier epochs
        self.mine = self._mine(0)
        self.place: tuple[int, int, int] | None = None  # epoch, shard and block in memory
        self.block: list[Raw | Bad] = []
        self.stream: Iterator[Raw | Bad] = iter(())
        self.streams_at = (-1, -1, -1)  # the block that the stream gives next: epoch, shard, block

    def _mine(self, epoch: int) -> list[int]:
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.shards))
        return [int(i) for i in order[self.number :: self.lanes]]

    def sample(self, index: int) -> Raw | Bad:
        """The index-th sample of this lane's run."""
        while index >= self.before + (size := sum(self.shards[i].samples for i in self.mine)):
            self.epoch, self.before = self.epoch + 1, self.before + size
            self.mine = self._mine(self.epoch)
        place = index - self.before
        for shard in self.mine:
            if place < self.shards[shard].samples:
                break
            place -= self.shards[shard].samples
        self._read(shard, place // BLOCK)
        return self.block[place % BLOCK]

    def _read(self, shard: int, number: int) -> None:
        if self.place == (self.epoch, shard, number):
            return
        self.place = (self.epoch, shard, number)
        url, samples = self.shards[shard].url, self.shards[shard].samples
        if self.streams_at != self.place:
            self.stream = islice(samples_of(url), number * BLOCK, None)
        wanted = min(BLOCK, samples - number * BLOCK)
        read = list(islice(self.stream, wanted))
        self.streams_at = (self.epoch, shard, number + 1)
        if len(read) < wanted:
            raise _promised(self.shards[shard], number * BLOCK + len(read))
        mixed = np.random.default_rng([self.seed, self.epoch, shard, number]).permutation(wanted)
        self.block = [read[i] for i in mixed]
