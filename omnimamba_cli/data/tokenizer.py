"""Text to ids and back, by the tokenizers library; special tokens belong to TextConfig, not to the file."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from omnimamba_cli.config import TextConfig
from omnimamba_cli.errors import CheckpointError

END_OF_TEXT = "<|endoftext|>"


class TextTokenizer:
    """A tokenizer.json with ids below base_vocab_size."""

    def __init__(self, tokenizer: Tokenizer, config: TextConfig) -> None:
        size = tokenizer.get_vocab_size(with_added_tokens=True)
        if size > config.base_vocab_size:
            raise CheckpointError(
                f"the tokenizer has {size} ids, the configuration expects at most {config.base_vocab_size}",
                hint="use the tokenizer.json that the model was trained with",
            )
        self.tokenizer = tokenizer
        self.config = config

    @classmethod
    def from_file(cls, path: Path, config: TextConfig) -> "TextTokenizer":
        """Read a tokenizer.json. Raises CheckpointError when it is missing or malformed."""
        if not path.is_file():
            raise CheckpointError(f"{path} is missing", hint="a model directory holds its tokenizer.json")
        try:
            return cls(Tokenizer.from_file(str(path)), config)
        except CheckpointError:
            raise
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"{path} is no tokenizer file ({error})") from error

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without any special token. Lone surrogates become U+FFFD."""
        return list(self.tokenizer.encode(_whole(text), add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many texts, in parallel."""
        clean = [_whole(text) for text in texts]
        return [list(e.ids) for e in self.tokenizer.encode_batch(clean, add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; end-of-text and the model's special tokens are left out."""
        plain = [i for i in ids if i < self.config.base_vocab_size and i != self.config.eos_id]
        return str(self.tokenizer.decode(plain, skip_special_tokens=True))

    def stream(self) -> "TextStream":
        """A decoder that takes one id at a time."""
        return TextStream(self)


def _whole(text: str) -> str:
    """The text with U+FFFD for lone surrogates, which no encoder takes (arguments that are no UTF-8 have them)."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class TextStream:
    """Text of a growing list of ids, in pieces that end on whole characters."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._settled = 0  # ids before the last clean break
        self._context = 0  # ids that only give the decoder its context

    def push(self, token: int) -> str:
        """The text that this id completes; empty while a character is unfinished."""
        self._ids.append(token)
        before = self._tokenizer.decode(self._ids[self._context : self._settled])
        now = self._tokenizer.decode(self._ids[self._context :])
        # U+FFFD at the end: bytes of a character that is not complete yet
        if now.endswith("\ufffd") or len(now) <= len(before):
            return ""
        self._context, self._settled = self._settled, len(self._ids)
        return now[len(before) :]

    def finish(self) -> str:
        """The text that is left, complete or not."""
        before = self._tokenizer.decode(self._ids[self._context : self._settled])
        now = self._tokenizer.decode(self._ids[self._context :])
        self._context = self._settled = len(self._ids)
        return now[len(before) :]


def save(tokenizer: Tokenizer, path: Path) -> None:
    """Write a tokenizer.json. (The library's own method hides an OSError in a bare Exception.)"""
    path.write_bytes(tokenizer.to_str(pretty=True).encode())


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of at most vocab_size ids; id 0 is end-of-text. It can encode any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
