"""Drawings that are codes already, JSON lines {"tokens": [...], "captions": [...]}: t2i data, kept in memory."""

import hashlib
import json
import os
import zipfile
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from omnimamba_cli.config import BAD_SHARE, ModelConfig, VQConfig
from omnimamba_cli.data.files import DataFile
from omnimamba_cli.data.records import Record, captions_of, labels_of, read_records
from omnimamba_cli.data.rejects import Rejects
from omnimamba_cli.data.samples import CAPTION, DROPOUT, draws
from omnimamba_cli.data.sequences import t2i_prefix
from omnimamba_cli.data.tokenizer import TextTokenizer
from omnimamba_cli.errors import InputError

CACHE_FORMAT = 4
CACHED = ("codes", "prefixes", "chosen", "first", "rejects")
# what numpy and zipfile raise for a file that is cut off or has changed bytes
DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, NotImplementedError)


class DrawnCodes:
    """The codes and captions of some files.

    codes (n codes) are the drawings; prefixes (u prefix) the distinct captions as t2i prefixes, row 0 the empty one.
    The captions of drawing i are chosen[first[i]:first[i + 1]], indices into prefixes.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        config: ModelConfig,
        tokenizer: TextTokenizer,
        *,
        seed: int = 0,
        limit: float = BAD_SHARE,
    ) -> None:
        self.config, self.seed = config, seed
        self.rejects = Rejects(limit)
        parts = [self._load(*one, tokenizer) for one in zip(paths, labels_of(paths), strict=True)]
        self.codes = np.concatenate([p["codes"] for p in parts])
        shifts = np.cumsum([0, *(len(p["prefixes"]) for p in parts)])
        self.prefixes = np.concatenate([p["prefixes"] for p in parts])
        self.chosen = np.concatenate([p["chosen"] + s for p, s in zip(parts, shifts[:-1], strict=True)])
        counts = np.concatenate([np.diff(p["first"]) for p in parts])
        self.first = np.concatenate([[0], np.cumsum(counts)])
        if not len(self.codes):
            raise self.rejects.none_left(paths)
        self.rejects.check(len(self.codes) + len(self.rejects.reasons))
        self.files = [DataFile.opened(path, len(p["codes"])) for path, p in zip(paths, parts, strict=True)]

    def __len__(self) -> int:
        return len(self.codes)

    def rows(self, positions: np.ndarray, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Prefix ids (b prefix) and codes (b codes), int32; captions drawn at random or left out (caption_dropout)."""
        counts = self.first[indices + 1] - self.first[indices]
        pick = (draws(self.seed, positions, CAPTION) * counts).astype(np.int64)
        caption = self.chosen[self.first[indices] + pick]
        caption = np.where(draws(self.seed, positions, DROPOUT) < self.config.caption_dropout, 0, caption)
        prefixes, codes = self.prefixes[caption].astype(np.int32), self.codes[indices].astype(np.int32)
        return torch.from_numpy(prefixes), torch.from_numpy(codes)

    def _load(self, path: Path, label: str, tokenizer: TextTokenizer) -> dict[str, np.ndarray]:
        """One file's arrays, from a cache beside it unless the file, the tokenizer or the sizes have changed."""
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        stat = path.stat()
        parts = (CACHE_FORMAT, label, stat.st_size, stat.st_mtime_ns, self.config.text, self.config.caption_tokens)
        key = hashlib.sha256(repr((*parts, self.config.vq)).encode() + tokenizer.tokenizer.to_str().encode())
        cache = path.with_name(path.name + ".cache.npz")
        known = _read_cache(cache, key.hexdigest())
        if known is not None:
            self.rejects.reasons.update(json.loads(known["rejects"].tobytes()))
            return known
        before = set(self.rejects.reasons)
        parsed = self._parse(path, label, tokenizer)
        mine = {name: why for name, why in self.rejects.reasons.items() if name not in before}
        parsed["rejects"] = np.frombuffer(json.dumps(mine).encode(), np.uint8)
        _write_cache(cache, key.hexdigest(), parsed)
        return parsed

    def _parse(self, path: Path, label: str, tokenizer: TextTokenizer) -> dict[str, np.ndarray]:
        codes, chosen, first = array("i"), array("i"), array("q", [0])
        captions: dict[str, int] = {"": 0}
        for name, record in read_records(path, self.rejects, label):
            try:
                row = codes_of(record, self.config.vq)
                said = captions_of(record)
            except ValueError as error:
                self.rejects.add(name, str(error))
                continue
            codes.extend(row)
            chosen.extend(captions.setdefault(c, len(captions)) for c in said)
            first.append(len(chosen))
        small = np.uint16 if self.config.vq.codebook_size <= 65_536 else np.int32
        narrow = np.uint16 if self.config.text.vocab_size <= 65_536 else np.int32
        ids = tokenizer.encode_batch(list(captions))
        return {
            "codes": np.frombuffer(codes, np.int32).astype(small).reshape(-1, self.config.vq.codes),
            "prefixes": np.array([t2i_prefix(self.config, i) for i in ids], narrow),
            "chosen": np.array(chosen, np.int32),
            "first": np.array(first, np.int64),
        }


def codes_of(record: Record, vq: VQConfig) -> "array[int]":
    """A record's codes. Raises ValueError where their number or a value is wrong, saying where."""
    tokens = record.get("tokens")
    if not isinstance(tokens, list) or len(tokens) != vq.codes:
        count = len(tokens) if isinstance(tokens, list) else "no"
        raise ValueError(f"it has {count} codes, the model draws with {vq.codes}")
    try:
        row = array("i", tokens)
    except (TypeError, OverflowError):
        raise ValueError("a code is no whole number") from None
    if min(row) < 0 or max(row) >= vq.codebook_size:
        wrong = next(i for i, code in enumerate(row) if not 0 <= code < vq.codebook_size)
        raise ValueError(f"code {wrong} is {row[wrong]}, outside 0 to {vq.codebook_size - 1}")
    return row


def _read_cache(path: Path, key: str) -> dict[str, np.ndarray] | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["key"]) != key:
                return None
            return {name: file[name] for name in CACHED}
    except DAMAGED:
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
