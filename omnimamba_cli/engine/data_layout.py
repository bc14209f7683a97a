"""How a sample becomes tokens: which stand where, what each is, and which of them are trained on."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from omnimamba_cli.config import SPECIAL_TOKENS, ModelConfig
from omnimamba_cli.data.sequences import mmu_middle, mmu_prefix, plain_lead, t2i_prefix
from omnimamba_cli.data.tokenizer import END_OF_TEXT, TextTokenizer


@dataclass(frozen=True)
class Span:
    """Tokens start to end (not included) of a row: what they are, whether they are targets, their text."""

    start: int
    end: int
    what: str
    trained: bool = False
    text: str | None = None


@dataclass(frozen=True)
class Layout:
    """One sample's row of tokens."""

    name: str
    picture: str | None  # "640x480"
    spans: tuple[Span, ...]

    def to_dict(self) -> dict[str, Any]:  # Any: JSON
        """A JSON object."""
        return asdict(self)


def talk_layout(
    config: ModelConfig, tokenizer: TextTokenizer, ids: Sequence[int], targets: Sequence[bool], *, shown: bool
) -> tuple[Span, ...]:
    """The spans of a conversation; `shown`: it is about a picture."""
    spans: list[Span] = []
    if shown:
        spans += _specials(config, mmu_prefix(config), 0)
        at = spans[-1].end
        spans.append(Span(at, at + config.patches, f"picture: {config.patches} patches"))
        spans += _specials(config, mmu_middle(config), spans[-1].end)
    else:
        spans += _specials(config, plain_lead(config), 0)
    for trained, group in groupby(zip(ids, targets, strict=True), key=lambda pair: pair[1]):
        part = [token for token, _ in group]
        at = spans[-1].end
        spans.append(Span(at, at + len(part), "answer" if trained else "question", trained, _text(tokenizer, part)))
    return tuple(spans)


def drawing_layout(config: ModelConfig, tokenizer: TextTokenizer, caption: Sequence[int]) -> tuple[Span, ...]:
    """The spans of a drawing, from its caption's ids."""
    prefix = t2i_prefix(config, caption)
    kept = list(caption[: config.caption_tokens])
    pads = config.caption_tokens - len(kept)
    lead, tail = prefix[:2], prefix[2 + config.caption_tokens :]
    spans = list(_specials(config, lead, 0))
    if pads:
        spans.append(Span(2, 2 + pads, f"{pads} x [PAD]"))
    if kept:
        spans.append(Span(2 + pads, 2 + config.caption_tokens, "caption", text=_text(tokenizer, kept)))
    spans += _specials(config, tail, 2 + config.caption_tokens)
    at = spans[-1].end
    return (*spans, Span(at, at + config.vq.codes, f"picture: {config.vq.codes} codes", True))


def _specials(config: ModelConfig, ids: Sequence[int], at: int) -> Iterator[Span]:
    for i, token in enumerate(ids):
        name = SPECIAL_TOKENS[token - config.text.base_vocab_size]
        yield Span(at + i, at + i + 1, name if name.startswith("[") else f"[{name}]")


def _text(tokenizer: TextTokenizer, ids: Sequence[int]) -> str:
    end = END_OF_TEXT if ids[-1] == tokenizer.config.eos_id else ""
    return tokenizer.decode(ids) + end
