"""Trains text tokenizers (yields events), and loads image tokenizers."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from omnimamba_cli.config import VQConfig
from omnimamba_cli.data.records import TABLES, captions_of, read_records, turns_of
from omnimamba_cli.data.rejects import Rejects
from omnimamba_cli.data.sequences import TRAINING_PROMPT
from omnimamba_cli.data.tokenizer import save, train_bpe
from omnimamba_cli.engine import checkpoint
from omnimamba_cli.engine.safetensors_io import partial
from omnimamba_cli.engine.starting import fill, part_file, vq_config
from omnimamba_cli.errors import CheckpointError, InputError, file_reason
from omnimamba_cli.model.vq import VQModel
from omnimamba_cli.train.events import Event, Note, Saved

VQ_FILE = "vq.safetensors"


def train_text_tokenizer(
    data: Sequence[Path], vocab_size: int, output: Path, *, force: bool = False
) -> Iterator[Event]:
    """A byte-level BPE from captions, conversations, codes files or plain text."""
    if output.exists() and not force:
        raise InputError(f"{output} exists", hint="--force replaces it")
    tokenizer = train_bpe(itertools.chain.from_iterable(map(_texts, data)), vocab_size)
    with partial(output) as temporary:
        save(tokenizer, temporary)
    yield Note(text=f"{tokenizer.get_vocab_size():,} ids")
    yield Saved(path=output, step=0)


def _texts(path: Path) -> Iterator[str]:
    """The texts of a data file, as they will be tokenized in training."""
    if not path.is_dir() and path.suffix.lower() not in (".json", ".jsonl", *TABLES):
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                yield from (line.rstrip("\n") for line in file)
        except OSError as error:
            raise InputError(f"{path}: {file_reason(error)}") from None
        return
    for _, record in read_records(path, Rejects()):
        with suppress(ValueError, KeyError, AttributeError):
            if "conversations" in record:
                for question, answer in turns_of(record):
                    yield TRAINING_PROMPT.replace("{question}", question) + f" {answer}"
            else:
                for caption in captions_of(record):
                    yield caption
                    yield f" {caption}"


def load_vq(path: Path, config: VQConfig | None = None) -> VQModel:
    """A VQ model from train-tokenizer's output, a model directory, or a vq.safetensors beside its config.json."""
    file = part_file(path, VQ_FILE)
    beside = file.parent / checkpoint.CONFIG
    if config is None:
        if not beside.is_file():
            raise CheckpointError(f"{beside} is missing: the sizes of {file} are unknown", hint="--preset NAME")
        config = vq_config(file, VQConfig())
    model = VQModel(config)
    fill(model, file)
    return model.eval()
