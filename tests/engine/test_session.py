"""What the Python API promises, on a whole small model: any batch, streams, seeds, limits and refusals."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import omnimamba_cli as om
from omnimamba_cli.config import ModelConfig, SamplingConfig
from omnimamba_cli.data import sequences
from omnimamba_cli.engine.events import DrawingEvent
from omnimamba_cli.engine.sampling import candidate_seed
from omnimamba_cli.engine.session import Session
from omnimamba_cli.errors import CheckpointError, InputError
from omnimamba_cli.ops import packed_int8

SAMPLED = SamplingConfig(temperature=1.0, max_new_tokens=12)
DRAWN = SamplingConfig(temperature=1.0)


@pytest.fixture(scope="module")
def session(tiny_model: Path) -> Session:
    return om.load(tiny_model, device="cpu")


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(3)
    return [Image.fromarray(rng.integers(0, 255, (20 + i, 30, 3), dtype=np.uint8)) for i in range(count)]


def same(one: list[Image.Image], other: list[Image.Image]) -> bool:
    return [p.tobytes() for p in one] == [p.tobytes() for p in other]


# naming


def test_every_picture_gets_what_it_gets_alone(session: Session) -> None:
    images = pictures(5)
    # questions of three lengths, mixed
    questions = ["what is here?", None, "a?", "what is here?", "what colour is the background of it all?"]
    together = session.captions(images, questions, sampling=SAMPLED, seed=40)
    for i, (image, question) in enumerate(zip(images, questions, strict=True)):
        alone = session.captions([image], [question], sampling=SAMPLED, seed=40 + i)[0]
        assert (together[i].text, together[i].tokens) == (alone.text, alone.tokens)
        assert together[i].finish_reason == alone.finish_reason
        assert together[i].text == session.caption(image, question, sampling=SAMPLED, seed=40 + i)
    assert len({result.text for result in together}) > 1


def test_captions_are_greedy_unless_asked(session: Session) -> None:
    image = pictures(1)[0]
    assert session.caption(image, seed=1) == session.caption(image, seed=2)
    assert len({session.caption(image, sampling=SAMPLED, seed=s) for s in range(4)}) > 1


@pytest.mark.parametrize("question", [None, "", "  \n"])
def test_no_question_is_the_default_question(session: Session, question: str | None) -> None:
    image = pictures(1)[0]
    assert session.caption(image, question) == session.caption(image, session.config.default_question)


def test_a_template_takes_the_prompts_place(session: Session) -> None:
    image = pictures(1)[0]
    one = session.embed_question([image], [session._question("a fox?", "{question}")])
    plain = sequences.mmu_length(session.config, len(session.tokenizer.encode("a fox?")))
    assert one.shape[1] == plain


@pytest.mark.parametrize("seed", range(4))
def test_a_streamed_caption_is_the_caption(session: Session, seed: int) -> None:
    image = pictures(1)[0]
    whole = session.captions([image], sampling=SAMPLED, seed=seed)[0]
    events = list(session.stream_caption(image, sampling=SAMPLED, seed=seed))
    assert "".join(event.text for event in events).strip() == whole.text
    assert not "".join(event.text for event in events)[:1].isspace()
    assert [event.finished for event in events] == [False] * (len(events) - 1) + [True]
    last = events[-1]
    assert (last.finish_reason, last.tokens) == (whole.finish_reason, whole.tokens)
    assert all(event.finish_reason is None and event.text for event in events[:-1])


def test_a_caption_stops_at_its_limit_or_its_end(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    image = pictures(1)[0]
    cut = session.captions([image], sampling=replace(SAMPLED, max_new_tokens=3), seed=0)[0]
    assert (cut.tokens, cut.finish_reason) == (3, "length")
    monkeypatch.setattr("omnimamba_cli.engine.decode.choose", lambda logits, *_: torch.zeros(len(logits)).long())
    ended = session.captions([image], sampling=SAMPLED)[0]
    assert (ended.text, ended.tokens, ended.finish_reason) == ("", 1, "stop")


def test_special_tokens_never_show(session: Session) -> None:
    model = session.for_task("mmu")
    kept = model.text_embedding.weight.clone()
    base = session.config.text.base_vocab_size
    wild = replace(SAMPLED, temperature=9.0)
    try:
        with torch.inference_mode():
            model.text_embedding.weight[base:] *= 1000
        events = list(session.stream_caption(pictures(1)[0], sampling=wild, seed=0))
        said = session.caption(pictures(1)[0], sampling=wild, seed=0)
    finally:
        with torch.inference_mode():
            model.text_embedding.weight.copy_(kept)
    assert events[-1].tokens == 12
    for word in ("[PAD]", "<|endoftext|>"):
        assert word not in said + "".join(event.text for event in events)


# limits


def test_the_longest_question_fits_and_one_more_does_not(session: Session) -> None:
    c = session.config
    room = c.mmu_positions - sequences.mmu_length(c, 0) - 1
    template = "{question}"
    word = session.tokenizer.encode("z")
    assert len(word) == 1
    fits, long = "z" * room, "z" * (room + 1)
    image = pictures(1)[0]
    assert session.captions([image], [fits], template=template)[0].tokens <= 2
    with pytest.raises(InputError, match=f"the question has {room + 1} tokens; {room} fit"):
        session.caption(image, long, template=template)


def test_more_new_tokens_than_fit_are_refused_with_the_most(session: Session) -> None:
    image = pictures(1)[0]
    used = sequences.mmu_length(session.config, len(session._question(None, None)))
    most = session.config.mmu_positions - used + 1
    with pytest.raises(InputError, match=f"{most + 1} new tokens after {used} are past") as caught:
        session.caption(image, sampling=SamplingConfig(max_new_tokens=most + 1))
    assert caught.value.hint == f"--max-new-tokens {most} is the most here"
    assert session.captions([image], sampling=SamplingConfig(max_new_tokens=most))[0].tokens <= most


def test_a_bad_picture_is_named(session: Session, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        session.caption(tmp_path / "gone.png")


# drawing


@pytest.mark.parametrize("sampling", [None, DRAWN], ids=["models own", "unguided"])
def test_picture_i_uses_seed_plus_i_whatever_the_batch(session: Session, sampling: SamplingConfig | None) -> None:
    want = [session.generate("a red fox", seed=11 + i, sampling=sampling)[0] for i in range(4)]
    assert len({p.tobytes() for p in want}) == 4
    for size in (1, 2, 3, None):
        assert same(session.generate("a red fox", n=4, seed=11, sampling=sampling, batch_size=size), want)


def test_prompts_of_any_length_share_a_batch(session: Session) -> None:
    prompts = ["a fox", "", "two small cats and a dog on a blue background"]
    together = session.generate(prompts, seed=5)
    alone = [session.generate(p, seed=5 + i)[0] for i, p in enumerate(prompts)]
    assert same(together, alone)


def test_events_say_which_picture_of_which_prompt(session: Session) -> None:
    events = list(session.stream_generate(["a", "b"], n=2, seed=100, batch_size=3, sampling=DRAWN))
    assert [(e.index, e.prompt, e.seed) for e in events] == [(0, "a", 100), (1, "a", 101), (2, "b", 102), (3, "b", 103)]
    assert {e.image.size for e in events} == {(32, 32)}


@pytest.mark.parametrize("candidates", [1, 3])
def test_a_watcher_is_told_how_far_a_batch_is(
    session: Session, monkeypatch: pytest.MonkeyPatch, candidates: int
) -> None:
    monkeypatch.setattr("omnimamba_cli.engine.decode.WATCHED", 16)
    told: list[DrawingEvent] = []
    previews: list[Image.Image] = []

    def watch(event: DrawingEvent) -> None:
        told.append(event)
        previews.append(event.preview())

    sampling = replace(DRAWN, candidates=candidates)
    options = {"seed": 3, "batch_size": 2, "sampling": sampling}
    drawn = list(session.stream_generate(["a", "b", "c"], **options, watch=watch))
    assert same([e.image for e in drawn], [e.image for e in session.stream_generate(["a", "b", "c"], **options)])
    assert [(e.index, e.pictures, e.done, e.codes) for e in told] == [
        (index, pictures, done, 64) for index, pictures in ((0, 2), (2, 1)) for done in (16, 32, 48, 64)
    ]
    # half of the codes: the upper half of the picture
    half = np.asarray(previews[1])
    assert (half[16:] == 128).all()
    assert (half[:12] != 128).any()
    if candidates == 1:
        assert previews[3].tobytes() == drawn[0].image.tobytes()


@pytest.mark.parametrize("prompt", ["", " ", "\U0001f98a\u72d0", "fox " * 3000, "a\udc80b"])
def test_any_prompt_draws(session: Session, prompt: str) -> None:
    image = session.generate(prompt, seed=0)[0]
    assert (image.mode, image.size) == ("RGB", (32, 32))


def test_a_prompt_is_cut_at_the_models_limit(session: Session) -> None:
    room = session.config.caption_tokens
    fits, long = "z" * room, "z" * (room + 1)
    assert not session.prompt_was_cut(fits)
    assert session.prompt_was_cut(long)
    assert same(session.generate(fits, seed=1), session.generate(long, seed=1))


def test_the_prompt_matters(session: Session) -> None:
    cold = replace(DRAWN, temperature=0.01)  # this model's scores differ little
    one, other = (session.generate(prompt, seed=1, sampling=cold) for prompt in ("a red fox", "a green house"))
    assert not same(one, other)


# guidance


def test_the_candidate_that_reads_best_is_kept(session: Session) -> None:
    prompt, k = "a red fox", 4
    config = replace(session.config.image_sampling, candidates=k)
    alone = replace(config, candidates=1)
    drawn = [session.generate(prompt, seed=candidate_seed(5, j), sampling=alone)[0] for j in range(k)]
    best = drawn[int(session.likelihood(drawn, prompt).argmax())]
    kept = session.generate(prompt, seed=5, sampling=config)[0]
    assert np.array_equal(np.asarray(kept), np.asarray(best))


def test_the_first_candidate_has_the_pictures_own_seed() -> None:
    assert candidate_seed(7, 0) == 7
    assert len({candidate_seed(seed, j) for seed in range(50) for j in range(8)}) == 400


def test_likelihood_is_the_sum_over_the_texts_tokens(session: Session) -> None:
    image = Image.new("RGB", (64, 64), "red")
    text = "red"
    ids = session.tokenizer.encode(" " + text)
    asked = session._question(session.config.ranking_question, None)
    model, want = session.for_task("mmu"), 0.0
    with torch.inference_mode():
        for i, token in enumerate(ids):
            x = session.embed_question([image], [asked + ids[:i]])
            want += float(model.logits(model(x, "mmu")[:, -1], "mmu").float().log_softmax(-1)[0, token])
    assert float(session.likelihood([image], text)[0]) == pytest.approx(want, abs=1e-4)


def test_guidance_changes_the_picture(session: Session) -> None:
    cold = replace(DRAWN, temperature=0.01)
    plain, guided = (session.generate("a fox", seed=1, sampling=replace(cold, guidance=g)) for g in (1.0, 4.0))
    assert not same(plain, guided)


@pytest.fixture(scope="module")
def undropped(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """The same model, trained without dropped captions."""
    directory = shutil.copytree(tiny_model, tmp_path_factory.mktemp("models") / "undropped")
    config = ModelConfig.from_dict(json.loads((directory / "config.json").read_text()))
    (directory / "config.json").write_text(json.dumps(replace(config, caption_dropout=0.0).to_dict()))
    return om.load(directory, device="cpu")


def test_guidance_that_was_not_trained_is_refused(undropped: Session) -> None:
    with pytest.raises(InputError, match="guidance 2 needs a model trained with dropped captions; tiny was not"):
        undropped.generate("a fox", sampling=replace(DRAWN, guidance=2.0))


def test_guidance_nobody_asked_for_is_left_out(undropped: Session, session: Session) -> None:
    own = undropped.config.image_sampling
    assert own.guidance != 1
    drawn = undropped.generate("a fox", seed=2)
    assert same(drawn, session.generate("a fox", seed=2, sampling=replace(own, guidance=1.0)))


# loading


def test_a_session_loads_only_what_a_task_needs(tiny_model: Path, tmp_path: Path) -> None:
    blind = shutil.copytree(tiny_model, tmp_path / "blind")
    (blind / "vision.safetensors").unlink()
    session = om.load(blind, device="cpu")
    assert session.generate("a fox", seed=0)
    with pytest.raises(CheckpointError, match=r"vision\.safetensors"):
        session.caption(pictures(1)[0])


def test_both_tasks_of_a_session_share_their_weights(session: Session) -> None:
    mmu, t2i = session.for_task("mmu"), session.for_task("t2i")
    assert mmu.norm_f.weight.data_ptr() == t2i.norm_f.weight.data_ptr()
    assert session.for_task("mmu") is mmu


def test_half_precision_says_and_draws_something(tiny_model: Path) -> None:
    session = om.load(tiny_model, device="cpu", dtype="bf16")
    assert session.for_task("mmu").dtype == torch.bfloat16
    assert session.captions(pictures(1), sampling=SAMPLED, seed=0)[0].tokens > 0
    assert session.generate("a fox", seed=0)[0].size == (32, 32)


@pytest.mark.skipif(packed_int8.refusal() is not None, reason=str(packed_int8.refusal()))
def test_int8_on_a_cpu_names_and_draws_and_a_row_is_what_it_is_alone(tiny_model: Path) -> None:
    narrow = om.load(tiny_model, device="cpu", quantize="int8")
    images = pictures(3)
    together = narrow.captions(images, sampling=SAMPLED, seed=40)
    for i, image in enumerate(images):
        assert narrow.captions([image], sampling=SAMPLED, seed=40 + i)[0].text == together[i].text
    drawn = narrow.generate("a red fox", n=3, seed=7, sampling=DRAWN)
    assert same(drawn[2:], narrow.generate("a red fox", seed=9, sampling=DRAWN))
    scores = torch.cat([s.likelihood(images, "a red fox") for s in (om.load(tiny_model, device="cpu"), narrow)])
    assert torch.allclose(scores[:3], scores[3:], rtol=0.02)
    assert not torch.equal(scores[:3], scores[3:])
