"""From a prefix to tokens: rows that end alone, the same tokens in any batch, guidance that shares its code."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from omnimamba_cli.config import SamplingConfig
from omnimamba_cli.data import sequences
from omnimamba_cli.engine.decode import decode_image, decode_text
from omnimamba_cli.engine.sampling import choose, guided, uniforms
from omnimamba_cli.errors import DeviceError
from omnimamba_cli.model.lora import merged
from omnimamba_cli.model.omnimamba import OmniMamba
from tests.cases import small

END = 0
STEPS = 24
GREEDY = SamplingConfig()
SAMPLED = SamplingConfig(temperature=1.5, top_k=20)
BASE = small.CONFIG.text.base_vocab_size


@pytest.fixture(scope="module")
def model() -> OmniMamba:
    """Its end-of-text is likely enough that rows end at different steps."""
    result = small.model()
    result.text_embedding.weight.data[END] *= 2.5
    return result


def prefix(rows: int = 6, length: int = 9) -> Tensor:
    rng = torch.Generator().manual_seed(5)
    return torch.randn(rows, length, small.CONFIG.backbone.d_model, generator=rng)


def text(model: OmniMamba, x: Tensor, config: SamplingConfig, seeds: list[int], steps: int = STEPS) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in x]
    for step in decode_text(model, x, config, steps=steps, seeds=seeds):
        for row, token in step:
            rows[row].append(token)
    return rows


@pytest.mark.parametrize(
    "config", [GREEDY, SAMPLED, replace(SAMPLED, repetition_penalty=1.5)], ids=["greedy", "sampled", "penalty"]
)
def test_every_row_is_what_it_is_alone(model: OmniMamba, config: SamplingConfig) -> None:
    x = prefix()
    together = text(model, x, config, list(range(10, 16)))
    alone = [text(model, x[i : i + 1], config, [10 + i])[0] for i in range(6)]
    assert together == alone
    assert len({len(row) for row in together}) > 1, "rows end at different steps"


def test_a_row_ends_with_its_end_of_text_and_is_not_seen_again(model: OmniMamba) -> None:
    ended: set[int] = set()
    for step in decode_text(model, prefix(), SAMPLED, steps=STEPS, seeds=list(range(6))):
        assert not ended & {row for row, _ in step}
        ended |= {row for row, token in step if token == END}
    rows = text(model, prefix(), SAMPLED, list(range(6)))
    assert ended == {i for i, row in enumerate(rows) if row[-1] == END}
    assert ended
    assert all(END not in row[:-1] for row in rows)


def test_ended_rows_are_not_computed(model: OmniMamba, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    real = model.embed_text
    monkeypatch.setattr(model, "embed_text", lambda ids: sizes.append(len(ids)) or real(ids))
    rows = text(model, prefix(), SAMPLED, list(range(6)))
    # the last token of a row is never read
    assert sum(sizes) == sum(len(row) - 1 for row in rows)
    assert sizes == sorted(sizes, reverse=True)


def test_greedy_tokens_are_those_of_full_forwards(model: OmniMamba) -> None:
    x = prefix(rows=1)
    with torch.inference_mode():
        got = text(model, x, GREEDY, [0])[0]
        read = torch.cat([x, model.embed_text(torch.tensor([got[:-1]]))], 1)
        logits = model.logits(model(read, "mmu")[:, x.shape[1] - 1 :], "mmu")[0, :, :BASE]
    assert logits.argmax(-1).tolist() == got


def test_steps_are_a_limit(model: OmniMamba) -> None:
    whole = text(model, prefix(), GREEDY, [0] * 6)
    assert text(model, prefix(), GREEDY, [0] * 6, steps=3) == [row[:3] for row in whole]


def test_special_tokens_are_never_written() -> None:
    model = small.model()
    model.text_embedding.weight.data[BASE:] *= 30
    rows = text(model, prefix(), replace(SAMPLED, top_k=0, temperature=5.0), list(range(6)))
    assert max(max(row) for row in rows) < BASE


def test_a_strong_penalty_forbids_repeating(model: OmniMamba) -> None:
    plain = text(small.model(), prefix(), GREEDY, [0] * 6)
    assert any(len(set(row)) < len(row) for row in plain)
    rows = text(model, prefix(), replace(GREEDY, repetition_penalty=100.0), [0] * 6)
    # positive scores shrink below every other one; enough tokens are positive for these steps
    assert all(len(set(row[:8])) == len(row[:8]) for row in rows)


# pictures


def captions(*texts: list[int]) -> Tensor:
    return torch.tensor([sequences.t2i_prefix(small.CONFIG, ids) for ids in texts])


def test_a_picture_alone_is_the_picture_in_a_batch(model: OmniMamba) -> None:
    ids = captions([1, 2], [3], [4, 5, 6])
    together = decode_image(model, ids, SAMPLED, seeds=[7, 8, 9])
    assert together.shape == (3, small.CONFIG.vq.codes)
    for i in range(3):
        assert torch.equal(decode_image(model, ids[i : i + 1], SAMPLED, seeds=[7 + i])[0], together[i])


def test_seeds_make_pictures_differ(model: OmniMamba) -> None:
    codes = decode_image(model, captions([1], [1], [1]), SAMPLED, seeds=[7, 8, 7])
    assert torch.equal(codes[0], codes[2])
    assert not torch.equal(codes[0], codes[1])


@pytest.mark.parametrize("config", [SAMPLED, GREEDY], ids=["sampled", "greedy"])
@torch.inference_mode()
def test_guided_codes_are_those_of_two_full_forwards(model: OmniMamba, config: SamplingConfig) -> None:
    config = replace(config, guidance=2.5)
    ids = captions([1, 2, 3], [4], [], [])
    got = decode_image(model, ids, config, seeds=[3, 4])
    assert got.shape == (2, small.CONFIG.vq.codes)
    read = torch.cat([model.embed_caption(ids), model.embed_codes(got[:, :-1]).repeat(2, 1, 1)], 1)
    logits = model.logits(model(read, "t2i")[:, ids.shape[1] - 1 :], "t2i")
    draws = uniforms([3, 4], got.shape[1])
    for step in range(got.shape[1]):
        assert torch.equal(choose(guided(logits[:, step], 2.5), config, draws[:, step]), got[:, step])


def test_guidance_of_one_is_no_guidance(model: OmniMamba) -> None:
    ids = captions([1, 2, 3])
    plain = decode_image(model, ids, SAMPLED, seeds=[3])
    nearly = decode_image(model, captions([1, 2, 3], []), replace(SAMPLED, guidance=1 + 1e-9), seeds=[3])
    assert torch.equal(plain, nearly)


@pytest.mark.parametrize("task", ["mmu", "t2i"])
def test_a_merged_model_decodes_the_same(model: OmniMamba, task: str) -> None:
    if task == "mmu":
        outputs = [text(m, prefix(), SAMPLED, list(range(6))) for m in (model, merged(model, "mmu"))]
        assert outputs[0] == outputs[1]
        return
    one, other = (decode_image(m, captions([1], [2]), SAMPLED, seeds=[0, 1]) for m in (model, merged(model, "t2i")))
    assert torch.equal(one, other)


@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_an_overflow_of_float16_is_told(model: OmniMamba, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIMAMBA_KERNELS", kernels)
    narrow = copy.deepcopy(merged(model, "mmu")).half()
    assert text(narrow, prefix(1).half(), GREEDY, [0], steps=4)
    narrow.norm_f.weight.data.fill_(65_000)
    with pytest.raises(DeviceError, match="do not fit float16") as caught:
        text(narrow, prefix(1).half(), GREEDY, [0], steps=4)
    assert caught.value.hint == "--dtype bf16"
    drawing = copy.deepcopy(merged(model, "t2i")).half()
    drawing.norm_f.weight.data.fill_(65_000)
    ids = torch.tensor([sequences.t2i_prefix(small.CONFIG, [1, 2])])
    with pytest.raises(DeviceError, match="do not fit float16"):
        decode_image(drawing, ids, GREEDY, seeds=[0])
