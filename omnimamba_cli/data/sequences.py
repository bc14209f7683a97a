"""The order of tokens in a sequence: the one place that says what stands before, between and after.

mmu: [mmu][soi]{patches}[eoi][sot]{text}; t2i: [t2i][sot]{caption, left-padded}[eot][soi]{codes}[eoi].
"""

from collections.abc import Sequence

from omnimamba_cli.config import ModelConfig
from omnimamba_cli.data.tokenizer import TextTokenizer

Turn = tuple[str, str]  # question, answer

RELEASED_PROMPT = "USER: {question} ASSISTANT:"  # of the released inference script
TRAINING_PROMPT = "In: {question}\nOut:"


def mmu_prefix(config: ModelConfig) -> list[int]:
    """Ids before the patches of a picture."""
    return [config.text.special("mmu"), config.text.special("soi")]


def mmu_middle(config: ModelConfig) -> list[int]:
    """Ids between the patches and the text."""
    return [config.text.special("eoi"), config.text.special("sot")]


def plain_lead(config: ModelConfig) -> list[int]:
    """Ids before the text of a sample without a picture: [mmu][sot]."""
    return [mmu_prefix(config)[0], mmu_middle(config)[-1]]


def mmu_length(config: ModelConfig, text_tokens: int) -> int:
    """Tokens of a whole mmu sequence with so many tokens of text."""
    return len(mmu_prefix(config)) + config.patches + len(mmu_middle(config)) + text_tokens


def t2i_prefix(config: ModelConfig, caption_ids: Sequence[int]) -> list[int]:
    """The whole prefix of a drawing: the caption cut to caption_tokens ids and padded on the left.

    Pads are neither masked nor skipped; an empty caption is pads alone.
    """
    special, room = config.text.special, config.caption_tokens
    kept = list(caption_ids[:room])
    padded = [special("[PAD]")] * (room - len(kept)) + kept
    return [special("t2i"), special("sot"), *padded, special("eot"), special("soi")]


def question_ids(tokenizer: TextTokenizer, prompt: str, question: str) -> list[int]:
    """The ids of a question put into a template."""
    # replace, not format: a question may contain braces
    return tokenizer.encode(prompt.replace("{question}", question))


def conversation(
    config: ModelConfig, tokenizer: TextTokenizer, turns: Sequence[Turn], *, questions: bool = True
) -> tuple[list[int], list[bool]]:
    """Training ids of a conversation and which of them are targets (the answers and their ends).

    `In: {question}\\nOut: {answer}<|endoftext|>`, turns joined by a line break; with questions=False only
    `{answer}<|endoftext|>`. At most max_text_tokens: a turn that does not fit whole is left out with all after it, but
    the first one is cut, so that there is a target unless the first question alone fills the room.
    """
    ids: list[int] = []
    targets: list[bool] = []
    for i, (question, answer) in enumerate(turns):
        lead = ("\n" if i else "") + TRAINING_PROMPT.replace("{question}", question) if questions else ""
        asked = tokenizer.encode(lead) if lead else []
        said = [*tokenizer.encode(f" {answer}" if questions else answer), config.text.eos_id]
        if i and len(ids) + len(asked) + len(said) > config.max_text_tokens:
            break
        ids += asked + said
        targets += [False] * len(asked) + [True] * len(said)
    return ids[: config.max_text_tokens], targets[: config.max_text_tokens]
