"""What Session and Seen share: a question as ids, how many tokens may follow it, and tokens gathered into text."""

import time
from collections.abc import Callable, Iterator, Sequence

from omnimamba_cli.config import ModelConfig, SamplingConfig
from omnimamba_cli.data import sequences
from omnimamba_cli.data.tokenizer import TextTokenizer
from omnimamba_cli.engine.events import CaptionResult, FinishReason, TextEvent
from omnimamba_cli.errors import InputError

Steps = Iterator[list[tuple[int, int]]]  # each step's (row, token) pairs, see decode.decode_text


def question_ids(
    config: ModelConfig, tokenizer: TextTokenizer, question: str | None, template: str | None, *, used: int
) -> list[int]:
    """The ids of a question (by default the model's own) in its template. `used`: positions before it.

    Raises InputError if it is too long.
    """
    text = question if question and question.strip() else config.default_question
    ids = sequences.question_ids(tokenizer, template or config.prompt, text)
    room = config.mmu_positions - used
    if len(ids) >= room:
        raise InputError(
            f"the question has {len(ids)} tokens; {room - 1} fit beside a picture "
            f"({config.mmu_positions} positions in all)",
            hint="ask a shorter question",
        )
    return ids


def most_steps(config: ModelConfig, sampling: SamplingConfig, *, used: int) -> int:
    """How many tokens may be written after `used` positions. Raises InputError where the user asked for more."""
    # the last token is written, never read
    room = config.mmu_positions - used + 1
    if sampling.max_new_tokens > room and sampling.max_new_tokens != config.caption_sampling.max_new_tokens:
        raise InputError(
            f"{sampling.max_new_tokens} new tokens after {used} are past the model's limit of "
            f"{config.mmu_positions} positions",
            hint=f"--max-new-tokens {room} is the most here",
        )
    return min(sampling.max_new_tokens, room)


def gather(
    config: ModelConfig,
    tokenizer: TextTokenizer,
    asked: Sequence[list[int]],
    decode: Callable[[list[int]], Steps],
    *,
    batch_size: int | None = None,
) -> list[CaptionResult]:
    """An answer to each question. `decode` gets the indices of the questions of one batch.

    A batch has questions of one length alone: padding would change the answers.
    """
    results: dict[int, CaptionResult] = {}
    for length in sorted({len(ids) for ids in asked}):
        same = [i for i, ids in enumerate(asked) if len(ids) == length]
        size = batch_size or len(same)
        for rows in (same[first : first + size] for first in range(0, len(same), size)):
            start = time.perf_counter()
            written: dict[int, list[int]] = {i: [] for i in rows}
            for step in decode(rows):
                for row, token in step:
                    written[rows[row]].append(token)
            seconds = time.perf_counter() - start
            for i, ids in written.items():
                text = tokenizer.decode(ids).strip()
                results[i] = CaptionResult(text, finish_reason(config, ids), len(ids), seconds)
    return [results[i] for i in range(len(asked))]


def pieces(config: ModelConfig, tokenizer: TextTokenizer, steps: Steps) -> Iterator[TextEvent]:
    """The text of one row as it is written, in pieces that end on whole characters."""
    stream, ids, begun = tokenizer.stream(), list[int](), False
    for step in steps:
        ids.append(step[0][1])
        piece = stream.push(ids[-1])
        piece = piece if begun else piece.lstrip()
        begun = begun or bool(piece)
        if piece:
            yield TextEvent(piece, tokens=len(ids))
    rest = stream.finish()
    yield TextEvent(rest if begun else rest.lstrip(), True, finish_reason(config, ids), len(ids))


def finish_reason(config: ModelConfig, ids: Sequence[int]) -> FinishReason:
    """Why an answer ended."""
    return "stop" if ids and ids[-1] == config.text.eos_id else "length"
