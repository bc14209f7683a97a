"""The order of tokens, id by id."""

from dataclasses import replace

import pytest

from omnimamba_cli.config import ModelConfig
from omnimamba_cli.data import sequences
from omnimamba_cli.data.tokenizer import TextTokenizer, train_bpe
from omnimamba_cli.presets import PRESETS
from tests.cases import small

CONFIG: ModelConfig = replace(
    small.CONFIG, text=replace(small.CONFIG.text, base_vocab_size=300), max_text_tokens=40, t2i_positions=60
)
PAD, SOI, EOI, SOT, EOT, T2I, MMU = range(300, 307)


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(train_bpe(["In: what is here?\nOut: a red fox"] * 3, 300), CONFIG.text)


def test_mmu_ids_around_the_patches() -> None:
    assert sequences.mmu_prefix(CONFIG) == [MMU, SOI]
    assert sequences.mmu_middle(CONFIG) == [EOI, SOT]
    assert sequences.mmu_length(CONFIG, 5) == 2 + 11 + 2 + 5


def test_mmu_ids_of_the_published_model() -> None:
    config = PRESETS["1.3b"]
    assert sequences.mmu_prefix(config) == [50283, 50278]
    assert sequences.mmu_middle(config) == [50279, 50280]
    assert sequences.mmu_length(config, 0) == 733


@pytest.mark.parametrize(
    ("caption", "inside"),
    [
        ([], [PAD] * 9),
        ([5], [PAD] * 8 + [5]),
        ([1, 2, 3], [PAD] * 6 + [1, 2, 3]),
        (list(range(9)), list(range(9))),
        (list(range(1, 20)), list(range(1, 10))),
    ],
    ids=["empty", "one", "short", "full", "cut"],
)
def test_a_caption_is_cut_and_padded_on_the_left(caption: list[int], inside: list[int]) -> None:
    prefix = sequences.t2i_prefix(CONFIG, caption)
    assert prefix == [T2I, SOT, *inside, EOT, SOI]
    assert len(prefix) == CONFIG.t2i_prefix


def test_a_prefix_of_the_published_model_has_72_ids() -> None:
    prefix = sequences.t2i_prefix(PRESETS["1.3b"], [7, 8])
    assert len(prefix) == 72
    assert prefix[:3] == [50282, 50280, 50277]
    assert prefix[-5:] == [50277, 7, 8, 50281, 50278]


def test_a_question_may_contain_braces(tokenizer: TextTokenizer) -> None:
    ids = sequences.question_ids(tokenizer, "USER: {question} ASSISTANT:", "{0} {question}?")
    assert tokenizer.decode(ids) == "USER: {0} {question}? ASSISTANT:"


# conversations


def parts(tokenizer: TextTokenizer, ids: list[int], targets: list[bool]) -> tuple[str, str]:
    """What is given and what is to be learned, as text."""
    assert len(ids) == len(targets)
    given = tokenizer.decode([i for i, t in zip(ids, targets, strict=True) if not t])
    return given, tokenizer.decode([i for i, t in zip(ids, targets, strict=True) if t])


def test_the_answer_and_its_end_are_targets(tokenizer: TextTokenizer) -> None:
    ids, targets = sequences.conversation(CONFIG, tokenizer, [("what is here?", "a red fox")])
    asked = tokenizer.encode("In: what is here?\nOut:")
    assert ids == [*asked, *tokenizer.encode(" a red fox"), 0]
    assert targets == [False] * len(asked) + [True] * (len(ids) - len(asked))


def test_the_ids_are_those_of_the_whole_text(tokenizer: TextTokenizer) -> None:
    # what is asked at inference is the same ids as what was trained on
    ids, _ = sequences.conversation(CONFIG, tokenizer, [("what is here?", "a red fox")])
    assert ids[:-1] == tokenizer.encode("In: what is here?\nOut: a red fox")


def test_turns_are_joined_by_a_line_break(tokenizer: TextTokenizer) -> None:
    turns = [("a?", "x"), ("b?", "y")]
    ids, targets = sequences.conversation(CONFIG, tokenizer, turns)
    assert parts(tokenizer, ids, targets) == ("In: a?\nOut:\nIn: b?\nOut:", " x y")
    assert [i for i, t in zip(ids, targets, strict=True) if t].count(0) == 2


def test_without_questions_everything_is_a_target(tokenizer: TextTokenizer) -> None:
    ids, targets = sequences.conversation(CONFIG, tokenizer, [("what?", "a red fox")], questions=False)
    assert ids == [*tokenizer.encode("a red fox"), 0]
    assert all(targets)


def test_a_turn_that_does_not_fit_is_left_out_whole(tokenizer: TextTokenizer) -> None:
    one = sequences.conversation(CONFIG, tokenizer, [("a?", "x")])
    both = sequences.conversation(CONFIG, tokenizer, [("a?", "x"), ("b?", "fox " * 40), ("c?", "z")])
    assert both == one


def test_a_turn_that_fits_exactly_is_kept(tokenizer: TextTokenizer) -> None:
    turns = [("a?", "x"), ("b?", "y")]
    whole = sequences.conversation(CONFIG, tokenizer, turns)
    for room, want in ((len(whole[0]), 2), (len(whole[0]) - 1, 1)):
        ids, _ = sequences.conversation(replace(CONFIG, max_text_tokens=room), tokenizer, turns)
        assert ids.count(0) == want


def test_a_first_answer_that_is_too_long_is_cut_and_still_learned(tokenizer: TextTokenizer) -> None:
    ids, targets = sequences.conversation(CONFIG, tokenizer, [("a?", "fox " * 100), ("b?", "y")])
    assert len(ids) == len(targets) == 40
    asked = len(tokenizer.encode("In: a?\nOut:"))
    assert targets == [False] * asked + [True] * (40 - asked)
    assert 0 not in ids  # it does not end there


def test_only_a_first_question_that_fills_everything_leaves_no_target(tokenizer: TextTokenizer) -> None:
    room = len(tokenizer.encode(sequences.TRAINING_PROMPT.replace("{question}", "fox " * 20)))
    turns = [("fox " * 20, "yes")]
    for extra, any_target in ((0, False), (1, True)):
        config = replace(CONFIG, max_text_tokens=room + extra)
        assert any(sequences.conversation(config, tokenizer, turns)[1]) == any_target


def test_an_empty_answer_still_teaches_its_end(tokenizer: TextTokenizer) -> None:
    ids, targets = sequences.conversation(CONFIG, tokenizer, [("a?", "")], questions=False)
    assert (ids, targets) == ([0], [True])
