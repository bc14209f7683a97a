"""Training data by sample: conversations about pictures, image codes with captions, pictures alone.

A bad sample is left out, counted and named; past a stated share the data are refused. Nothing trains as zeros.
"""

import hashlib
import json
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from omnimamba_cli.config import ModelConfig
from omnimamba_cli.data.images import load_image, tower_pixels, vq_pixels
from omnimamba_cli.data.records import Blob, Record, Rejects, captions_of, read_records, turns_of
from omnimamba_cli.data.sequences import conversation, t2i_prefix
from omnimamba_cli.data.tokenizer import TextTokenizer
from omnimamba_cli.errors import DataError, InputError

CACHE_FORMAT = 1
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Bad:
    """What a worker returns for a sample that cannot be used."""

    name: str
    reason: str


@dataclass(frozen=True)
class Talk:
    """One sample of the mmu task: uint8 pixels (3 s s) or None, text ids, which of them are targets."""

    pixels: Tensor | None
    ids: list[int]
    targets: list[bool]


class Conversations(torch.utils.data.Dataset[Talk | Bad]):
    """LLaVA-style JSON or JSON lines, and captions files ({"image", "captions"}), read when asked for."""

    def __init__(
        self,
        paths: Sequence[Path],
        image_root: Path | None,
        config: ModelConfig,
        tokenizer: TextTokenizer,
        *,
        questions: bool,
        seed: int = 0,
    ) -> None:
        self.config, self.tokenizer, self.questions, self.seed = config, tokenizer, questions, seed
        self.rejects = Rejects()
        self.names: list[tuple[int, str]] = []  # first index of each file
        self.roots = [str(image_root or path.parent) for path in paths]
        self.blob = Blob(self._read(paths))
        if not len(self.blob):
            raise DataError(f"no sample could be used in {', '.join(map(str, paths))}", hint=_first(self.rejects))
        self.rejects.check(len(self.blob) + len(self.rejects.reasons))

    def _read(self, paths: Sequence[Path]) -> Iterator[bytes]:
        for number, path in enumerate(paths):
            for name, record in read_records(path, self.rejects):
                try:
                    image = record.get("image")
                    if image is not None and not isinstance(image, str):
                        raise ValueError("its image is no file name")
                    if "conversations" in record:
                        content: Record = {"t": turns_of(record)}
                    else:
                        content = {"c": captions_of(record)}
                    yield json.dumps({"n": name, "r": number, "i": image, **content}).encode()
                except (ValueError, KeyError, AttributeError) as error:
                    self.rejects.add(name, str(error))

    def __len__(self) -> int:
        return len(self.blob)

    def __getitem__(self, key: tuple[int, int]) -> Talk | Bad:
        """key is (position in the run, index): the position decides what is drawn at random."""
        position, index = key
        record = json.loads(self.blob[index])
        name, image = record["n"], record["i"]
        if "c" in record:
            chosen = int(draws(self.seed, np.array([position]), 2)[0] * len(record["c"]))
            turns = [(self.config.default_question, record["c"][chosen])]
        else:
            turns = [(q, a) for q, a in record["t"]]
        if not self.questions:
            turns = turns[:1]  # the paper's first stage: a caption, no question
        ids, targets = conversation(self.config, self.tokenizer, turns, questions=self.questions)
        if not any(targets):
            return Bad(name, f"no answer within {self.config.max_text_tokens} tokens")
        if image is None:
            return Talk(None, ids, targets)
        try:
            picture = load_image(Path(self.roots[record["r"]]) / image)
        except InputError as error:
            return Bad(name, error.message)
        return Talk(tower_pixels(picture, self.config.vision_image_size), ids, targets)


def _first(rejects: Rejects) -> str | None:
    return next((f"{name}: {reason}" for name, reason in rejects.reasons.items()), None)


def draws(seed: int, positions: np.ndarray, stream: int) -> np.ndarray:
    """A uniform number in [0, 1) for each position: the same whatever the batch, process or restart."""
    with np.errstate(over="ignore"):
        x = positions.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x ^= np.uint64((seed * 0x2545F4914F6CDD1D + stream * 0xD1342543DE82EF95) % 2**64)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
        x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)).astype(np.float64) / 2.0**53


class DrawnCodes:
    """Image codes with captions, JSON lines {"tokens": [...], "captions": [...]}; wholly in memory.

    codes (n codes); prefixes (u prefix), every distinct caption as the ids before the codes, row 0 the empty one;
    row i's captions are chosen[first[i]:first[i + 1]], indices into prefixes.
    """

    def __init__(self, paths: Sequence[Path], config: ModelConfig, tokenizer: TextTokenizer, *, seed: int = 0) -> None:
        self.config, self.seed = config, seed
        self.rejects = Rejects()
        parts = [self._load(path, tokenizer) for path in paths]
        self.codes = np.concatenate([p["codes"] for p in parts])
        shifts = np.cumsum([0, *(len(p["prefixes"]) for p in parts)])
        self.prefixes = np.concatenate([p["prefixes"] for p in parts])
        self.chosen = np.concatenate([p["chosen"] + s for p, s in zip(parts, shifts[:-1], strict=True)])
        counts = np.concatenate([np.diff(p["first"]) for p in parts])
        self.first = np.concatenate([[0], np.cumsum(counts)])
        if not len(self.codes):
            raise DataError(f"no sample could be used in {', '.join(map(str, paths))}", hint=_first(self.rejects))
        self.rejects.check(len(self.codes) + len(self.rejects.reasons))

    def __len__(self) -> int:
        return len(self.codes)

    def rows(self, positions: np.ndarray, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Prefix ids (b prefix) int32 and codes (b codes) int32; a caption at random, or none (caption_dropout)."""
        counts = self.first[indices + 1] - self.first[indices]
        pick = (draws(self.seed, positions, 0) * counts).astype(np.int64)
        caption = self.chosen[self.first[indices] + pick]
        caption = np.where(draws(self.seed, positions, 1) < self.config.caption_dropout, 0, caption)
        prefixes, codes = self.prefixes[caption].astype(np.int32), self.codes[indices].astype(np.int32)
        return torch.from_numpy(prefixes), torch.from_numpy(codes)

    def _load(self, path: Path, tokenizer: TextTokenizer) -> dict[str, np.ndarray]:
        """One file, through a cache beside it that knows the file, the tokenizer and the sizes."""
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        stat = path.stat()
        parts = (CACHE_FORMAT, stat.st_size, stat.st_mtime_ns, self.config.text, self.config.caption_tokens)
        key = hashlib.sha256(repr((*parts, self.config.vq)).encode() + tokenizer.tokenizer.to_str().encode())
        cache = path.with_name(path.name + ".cache.npz")
        known = _read_cache(cache, key.hexdigest())
        if known is not None:
            self.rejects.reasons.update(json.loads(known["rejects"].tobytes()))
            return known
        before = set(self.rejects.reasons)
        parsed = self._parse(path, tokenizer)
        mine = {name: why for name, why in self.rejects.reasons.items() if name not in before}
        parsed["rejects"] = np.frombuffer(json.dumps(mine).encode(), np.uint8)
        _write_cache(cache, key.hexdigest(), parsed)
        return parsed

    def _parse(self, path: Path, tokenizer: TextTokenizer) -> dict[str, np.ndarray]:
        codes, chosen, first = array("i"), array("i"), array("q", [0])
        captions: dict[str, int] = {"": 0}
        for name, record in read_records(path, self.rejects):
            try:
                row = self._codes(record)
                said = captions_of(record)
            except ValueError as error:
                self.rejects.add(name, str(error))
                continue
            codes.extend(row)
            chosen.extend(captions.setdefault(c, len(captions)) for c in said)
            first.append(len(chosen))
        small = np.uint16 if self.config.vq.codebook_size <= 65_536 else np.int32
        narrow = np.uint16 if self.config.text.vocab_size <= 65_536 else np.int32
        ids = tokenizer.encode_batch([c.encode("utf-8", "replace").decode() for c in captions])
        return {
            "codes": np.frombuffer(codes, np.int32).astype(small).reshape(-1, self.config.vq.codes),
            "prefixes": np.array([t2i_prefix(self.config, i) for i in ids], narrow),
            "chosen": np.array(chosen, np.int32),
            "first": np.array(first, np.int64),
        }

    def _codes(self, record: Record) -> "array[int]":
        vq = self.config.vq
        tokens = record.get("tokens")
        if not isinstance(tokens, list) or len(tokens) != vq.codes:
            count = len(tokens) if isinstance(tokens, list) else "no"
            raise ValueError(f"it has {count} codes, the model draws with {vq.codes}")
        try:
            row = array("i", tokens)
        except (TypeError, OverflowError):
            raise ValueError("a code is no whole number") from None
        if min(row) < 0 or max(row) >= vq.codebook_size:
            raise ValueError(f"a code is outside 0 to {vq.codebook_size - 1}")
        return row


def _read_cache(path: Path, key: str) -> dict[str, np.ndarray] | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["key"]) != key:
                return None
            return {name: file[name] for name in file.files if name != "key"}
    except (OSError, ValueError, KeyError, EOFError):
        return None


def _write_cache(path: Path, key: str, arrays: dict[str, np.ndarray]) -> None:
    """Best effort: data on a read-only disk are parsed each time."""
    temporary = path.with_name(path.name + f".{os.getpid()}.partial")
    try:
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, key=np.array(key), **arrays)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)


class Pictures(torch.utils.data.Dataset[Tensor | Bad]):
    """Pictures by path, as uint8 (3 s s) for the image tokenizer."""

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        self.paths, self.size = Blob(os.fsencode(p) for p in paths), size
        self.rejects = Rejects()

    @classmethod
    def below(cls, folder: Path, size: int) -> "Pictures":
        """Every PNG, JPEG and WebP below a folder, in the order of their paths. Raises InputError without any."""
        found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise InputError(f"{folder}: no PNG, JPEG or WebP pictures below it")
        return cls(found, size)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: tuple[int, int]) -> Tensor | Bad:
        """key is (position in the run, index)."""
        path = Path(os.fsdecode(self.paths[key[1]]))
        try:
            return vq_pixels(load_image(path), self.size)
        except InputError as error:
            return Bad(str(path), error.message)
