"""Text to ids and back, in one piece and as a stream, for any writing people use."""

from pathlib import Path

import pytest

from omnimamba_cli.config import SPECIAL_TOKENS, TextConfig
from omnimamba_cli.data.tokenizer import END_OF_TEXT, TextTokenizer, train_bpe
from omnimamba_cli.errors import CheckpointError

NEOX = Path(__file__).parents[2].parent / "shared" / "tokenizer" / "gpt-neox-20b.json"
CORPUS = ["a red fox on a blue background", "two cats, a dog and the cats' house", "what is here?"] * 3
TEXTS = {
    "plain": "a red fox on the house",
    "spaces": "  a   fox \n\n\tand \r\n a dog  ",
    "emoji": "\U0001f98a\U0001f469\u200d\U0001f4bb \U0001f1eb\U0001f1ee fox\U0001f600\U0001f600",
    "cjk": "\u7ea2\u8272\u7684\u72d0\u72f8\u3001\u8d64\u3044\u72d0\u3002",
    "combined": "e\u0301a\u0308 o\u0302\u0323 \u0928\u093f",
    "right to left": "\u0634\u0639\u0644\u0628 \u05e9\u05d5\u05e2\u05dc",
    "control": "a\x00b\x7f\u0085\u2028\ufeff",
    "replacement": "a\ufffdb",
    "braces": "{question} {} [PAD] [/b] %s",
}


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(train_bpe(CORPUS, 300), TextConfig(base_vocab_size=300))


@pytest.fixture(scope="module")
def neox() -> TextTokenizer:
    if not NEOX.is_file():
        pytest.skip("gpt-neox-20b.json is not beside this checkout")
    return TextTokenizer.from_file(NEOX, TextConfig())


def streamed(tokenizer: TextTokenizer, ids: list[int]) -> list[str]:
    stream = tokenizer.stream()
    return [*(stream.push(i) for i in ids), stream.finish()]


# training


@pytest.mark.parametrize("name", TEXTS)
def test_any_text_comes_back(tokenizer: TextTokenizer, name: str) -> None:
    assert tokenizer.decode(tokenizer.encode(TEXTS[name])) == TEXTS[name]


def test_the_first_id_is_end_of_text_and_words_are_learned(tokenizer: TextTokenizer) -> None:
    assert tokenizer.tokenizer.token_to_id(END_OF_TEXT) == 0
    assert tokenizer.tokenizer.get_vocab_size() <= 300
    assert len(tokenizer.encode("a red fox")) < 7
    assert 0 not in tokenizer.encode("a red fox")


def test_training_gives_the_same_tokenizer_every_time() -> None:
    assert train_bpe(CORPUS, 290).to_str() == train_bpe(iter(CORPUS), 290).to_str()


def test_a_tiny_vocabulary_still_has_every_byte() -> None:
    tokenizer = TextTokenizer(train_bpe(CORPUS, 257), TextConfig(base_vocab_size=257))
    assert tokenizer.decode(tokenizer.encode(TEXTS["emoji"])) == TEXTS["emoji"]
    assert len(tokenizer.encode("fox")) == 3


# encoding and decoding


def test_a_batch_is_encoded_as_its_texts(tokenizer: TextTokenizer) -> None:
    texts = list(TEXTS.values())
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(t) for t in texts]


@pytest.mark.parametrize("text", ["a\udc80b", "\ud83e", "\udfff fox"])
def test_a_lone_surrogate_is_a_replacement_character(tokenizer: TextTokenizer, text: str) -> None:
    # such strings come from arguments that are no UTF-8
    want = "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)
    assert tokenizer.decode(tokenizer.encode(text)) == want
    assert tokenizer.decode(tokenizer.encode_batch([text])[0]) == want


def test_decoding_leaves_out_end_of_text_and_special_tokens(tokenizer: TextTokenizer) -> None:
    special = [tokenizer.config.special(name) for name in SPECIAL_TOKENS]
    ids = tokenizer.encode("a fox")
    mixed = [0, special[0], *ids[:1], special[3], *ids[1:], *special, 311, 0]
    assert tokenizer.decode(mixed) == "a fox"


def test_an_empty_text_has_no_ids(tokenizer: TextTokenizer) -> None:
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""


def test_a_larger_vocabulary_than_the_models_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"has \d+ ids, the configuration expects at most 280"):
        TextTokenizer(train_bpe(CORPUS, 290), TextConfig(base_vocab_size=280))


def test_a_missing_and_a_malformed_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is missing"):
        TextTokenizer.from_file(tmp_path / "tokenizer.json", TextConfig())
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is no tokenizer file"):
        TextTokenizer.from_file(tmp_path / "tokenizer.json", TextConfig())


# streams


@pytest.mark.parametrize("name", TEXTS)
def test_streamed_pieces_are_the_whole_text(tokenizer: TextTokenizer, name: str) -> None:
    ids = tokenizer.encode(TEXTS[name])
    assert "".join(streamed(tokenizer, ids)) == TEXTS[name]


@pytest.mark.parametrize("name", ["emoji", "cjk", "combined", "right to left"])
def test_streamed_pieces_end_on_whole_characters(tokenizer: TextTokenizer, name: str) -> None:
    pieces = streamed(tokenizer, tokenizer.encode(TEXTS[name]))
    assert "\ufffd" not in "".join(pieces)
    # every byte is an id of its own here, so most pieces are empty
    assert sum(not piece for piece in pieces) > len(TEXTS[name]) / 2
    assert all(len(piece) == 1 or piece.isascii() for piece in pieces if piece)


def test_a_stream_that_stops_inside_a_character_gives_what_decode_gives(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode("fox \U0001f98a")[:-2]
    pieces = streamed(tokenizer, ids)
    assert "\ufffd" not in "".join(pieces[:-1])
    assert "".join(pieces) == tokenizer.decode(ids)


def test_bytes_that_are_no_text_do_not_block_a_stream(tokenizer: TextTokenizer) -> None:
    broken = tokenizer.encode("\U0001f98a")[1:2] * 3  # continuation bytes alone
    ids = [*tokenizer.encode("a"), *broken, *tokenizer.encode(" fox on"), *broken[:1], *tokenizer.encode(" a")]
    pieces = streamed(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert any("fox" in piece or "f" in piece for piece in pieces[:-1])


def test_special_ids_are_silent_in_a_stream(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode("a fox")
    assert "".join(streamed(tokenizer, [305, *ids[:1], 0, *ids[1:], 0])) == "a fox"


# the published vocabulary


def test_the_published_id_layout(neox: TextTokenizer) -> None:
    text = neox.config
    assert neox.tokenizer.get_vocab_size(with_added_tokens=True) == text.base_vocab_size == 50_277
    assert [text.special(name) for name in SPECIAL_TOKENS] == list(range(50_277, 50_287))
    assert (text.special("[PAD]"), text.special("mmu"), text.special("lvg")) == (50_277, 50_283, 50_286)
    assert text.vocab_size == 50_288
    assert neox.tokenizer.token_to_id(END_OF_TEXT) == text.eos_id == 0


@pytest.mark.parametrize("name", sorted(set(TEXTS) - {"combined"}))  # its normalizer composes characters
def test_the_published_tokenizer_streams_any_text(neox: TextTokenizer, name: str) -> None:
    ids = neox.encode(TEXTS[name])
    assert neox.decode(ids) == TEXTS[name]
    assert "".join(streamed(neox, ids)) == TEXTS[name]


def test_known_ids_of_the_published_tokenizer(neox: TextTokenizer) -> None:
    asked = neox.encode("USER: what is here? ASSISTANT:")
    assert asked == [23131, 27, 752, 310, 1060, 32, 21893, 6905, 5656, 27]
