"""One picture, many questions: answers as from the whole sequence, no image work twice, states in files."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import omnimamba_cli as om
from omnimamba_cli.config import SamplingConfig
from omnimamba_cli.data import sequences
from omnimamba_cli.engine.conversation import Seen
from omnimamba_cli.engine.safetensors_io import read_safetensors, write_safetensors
from omnimamba_cli.engine.session import Session
from omnimamba_cli.errors import CheckpointError, InputError
from tests.numerics import assert_close

SAMPLED = SamplingConfig(temperature=1.0, max_new_tokens=12)
QUESTIONS = [
    "what is here?",
    None,
    "a?",
    "how many things are there?",
    "is it red?",
    "what colour is the background of it all?",
    "a b",
    "c d",
]


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (30, 20, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def session(tiny_model: Path) -> Session:
    return om.load(tiny_model, device="cpu")


@pytest.fixture(scope="module")
def seen(session: Session) -> Seen:
    return session.look(picture(1))


@pytest.fixture
def towers_run(session: Session) -> Callable[[], int]:
    """How often the image encoders ran since the test began."""
    runs: list[int] = []
    handle = session.towers.register_forward_hook(lambda *_: runs.append(1))
    yield lambda: len(runs)
    handle.remove()


# answers


@pytest.mark.parametrize("sampling", [None, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("image", [2, 3, 4])
def test_an_answer_is_that_of_a_caption(session: Session, image: int, sampling: SamplingConfig | None) -> None:
    seen = session.look(picture(image))
    want = [session.captions([picture(image)], [q], sampling=sampling, seed=5)[0] for q in QUESTIONS]
    got = [seen.answers([q], sampling=sampling, seed=5)[0] for q in QUESTIONS]
    assert [(a.text, a.tokens, a.finish_reason) for a in got] == [(a.text, a.tokens, a.finish_reason) for a in want]
    assert len({a.text for a in want}) > 1


def test_the_scores_after_the_question_are_those_of_one_forward(session: Session, seen: Seen) -> None:
    model = session.for_task("mmu")
    for question in QUESTIONS:
        ids = session._question(question, None)
        with torch.inference_mode():
            whole = model(session.embed_question([picture(1)], [ids]), "mmu")[:, -1]
            part = model(model.embed_text(torch.tensor([ids])), "mmu", seen.state.clone())[:, -1]
            assert_close("logits", model.logits(whole, "mmu"), model.logits(part, "mmu"), 1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_questions_at_once_get_what_they_get_alone(seen: Seen, batch_size: int) -> None:
    together = seen.answers(QUESTIONS, sampling=SAMPLED, seed=40, batch_size=batch_size)
    alone = [seen.ask(question, sampling=SAMPLED, seed=40 + i) for i, question in enumerate(QUESTIONS)]
    assert [result.text for result in together] == alone


def test_a_streamed_answer_is_the_answer(seen: Seen) -> None:
    events = list(seen.stream("is it red?", sampling=SAMPLED, seed=3))
    assert "".join(e.text for e in events).strip() == seen.ask("is it red?", sampling=SAMPLED, seed=3)
    assert [e.finished for e in events] == [False] * (len(events) - 1) + [True]


def test_asking_leaves_no_trace(seen: Seen) -> None:
    before, first = seen.state.clone(), seen.ask("a?")
    seen.answers(QUESTIONS)
    stopped = seen.stream("is it red?", sampling=SAMPLED)
    next(stopped)
    stopped.close()
    assert torch.equal(before.conv, seen.state.conv)
    assert torch.equal(before.ssm, seen.state.ssm)
    assert (seen.ask("a?"), seen.state.position) == (first, before.position)


def test_only_the_look_costs_image_work(session: Session, towers_run: Callable[[], int]) -> None:
    seen = session.look(picture(1))
    assert towers_run() == 1
    seen.ask("what is here?")
    seen.answers(QUESTIONS)
    list(seen.stream("a?"))
    seen.after("a?", "yes").ask("how many?")
    assert towers_run() == 1
    session.caption(picture(1), "what is here?")
    assert towers_run() == 2, "the counter counts"


def test_the_memory_of_a_picture_is_the_same_after_any_question(seen: Seen) -> None:
    later = seen.after("what is here?", "a red fox").after("how many?", "one")
    assert later.state.nbytes == seen.state.nbytes


def test_what_was_said_is_read_as_in_training(session: Session, seen: Seen) -> None:
    config, tokenizer = session.config, session.tokenizer
    turns = [("what is here?", "a red fox"), ("how many?", "one"), ("is it red?", "yes")]
    later = seen.after(*turns[0]).after(*turns[1])
    assert (seen.text_tokens, later.turns) == (0, 2)
    ids, targets = sequences.conversation(config, tokenizer, turns)
    # up to where the last answer begins
    asked = ids[: len(ids) - targets[::-1].index(False)]
    model = session.for_task("mmu")
    with torch.inference_mode():
        whole = model(session.embed_question([picture(1)], [asked]), "mmu")[:, -1]
        rest = later._ids(turns[2][0], sequences.TRAINING_PROMPT)
        assert later.text_tokens + len(rest) == len(asked)
        part = model(model.embed_text(torch.tensor([rest])), "mmu", later.state.clone())[:, -1]
    assert_close("hidden", whole, part, 1e-5)


def test_limits_are_counted_from_where_the_state_stands(session: Session, seen: Seen) -> None:
    room = session.config.mmu_positions - seen.state.position - 1
    seen.ask("z" * room, template="{question}")
    with pytest.raises(InputError, match=f"the question has {room + 1} tokens; {room} fit"):
        seen.ask("z" * (room + 1), template="{question}")
    with pytest.raises(InputError, match="past the model's limit"):
        seen.ask("a?", sampling=SamplingConfig(max_new_tokens=1000))
    with pytest.raises(InputError, match="past the model's limit"):
        seen.after("a?", "z " * 200)


def test_a_picture_that_is_none_is_an_input_error(session: Session) -> None:
    with pytest.raises(InputError, match="not a picture"):
        session.look(b"nothing")


# files


def test_a_saved_state_answers_like_the_one_that_was_saved(
    session: Session, seen: Seen, tmp_path: Path, towers_run: Callable[[], int]
) -> None:
    later = seen.after("a?", "yes")
    for one, name in ((seen, "a.state"), (later, "b.state")):
        one.save(tmp_path / name)
        again = session.recall(tmp_path / name)
        assert [again.ask(q) for q in QUESTIONS] == [one.ask(q) for q in QUESTIONS]
        assert (again.turns, again.text_tokens) == (one.turns, one.text_tokens)
    assert towers_run() == 0
    tensors, metadata = read_safetensors(tmp_path / "a.state")
    assert set(tensors) == {"conv", "ssm"}
    assert {k: metadata[k] for k in ("format", "version", "model", "dtype", "turns")} == {
        "format": "omnimamba-state",
        "version": "1",
        "model": "tiny",
        "dtype": "float32",
        "turns": "0",
    }


def test_a_state_goes_from_one_number_format_to_another(tiny_model: Path, seen: Seen, tmp_path: Path) -> None:
    seen.save(tmp_path / "a.state")
    half = om.load(tiny_model, device="cpu", dtype="bf16")
    again = half.recall(tmp_path / "a.state")
    assert (again.state.conv.dtype, again.state.ssm.dtype) == (torch.bfloat16, torch.float32)
    assert isinstance(again.ask("a?"), str)


def test_an_existing_file_is_kept(seen: Seen, tmp_path: Path) -> None:
    path = tmp_path / "a.state"
    path.write_bytes(b"old")
    with pytest.raises(InputError, match="exists and is not overwritten"):
        seen.save(path)
    assert path.read_bytes() == b"old"
    seen.save(path, overwrite=True)
    assert path.read_bytes() != b"old"


def other_model(source: Path, directory: Path, *, name: str, weight: str | None = None) -> Path:
    """A copy of a model under a name, with one weight of its LoRA or towers changed."""
    directory.mkdir()
    for path in source.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "name": name}))
    if weight:
        part, tensor = weight.split("/")
        tensors, metadata = read_safetensors(source / f"{part}.safetensors")
        changed = {**tensors, tensor: tensors[tensor] + 1}
        write_safetensors(directory / f"{part}.safetensors", changed, metadata)
    return directory


def some_weight(directory: Path, part: str, words: str) -> str:
    tensors, _ = read_safetensors(directory / f"{part}.safetensors")
    return f"{part}/{next(name for name in tensors if words in name)}"


@pytest.mark.parametrize(("part", "words"), [("model", "lora"), ("vision", "weight")])
def test_a_state_of_other_weights_is_refused(
    tiny_model: Path, seen: Seen, tmp_path: Path, part: str, words: str
) -> None:
    seen.save(tmp_path / "a.state")
    weight = some_weight(tiny_model, part, words)
    for name, says in (("tiny", "of another tiny: its weights differ"), ("big", "is a state of tiny, not of big")):
        other = om.load(other_model(tiny_model, tmp_path / name, name=name, weight=weight), device="cpu")
        with pytest.raises(InputError, match=says):
            other.recall(tmp_path / "a.state")
    same = om.load(other_model(tiny_model, tmp_path / "copy", name="copy"), device="cpu")
    assert same.recall(tmp_path / "a.state").ask("a?") == seen.ask("a?"), "the name is not what decides"


def test_what_is_no_state_is_refused_by_name(session: Session, seen: Seen, tmp_path: Path) -> None:
    path = tmp_path / "a.state"
    seen.save(path)
    tensors, metadata = read_safetensors(path)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    cases: list[tuple[dict[str, torch.Tensor], dict[str, str], str]] = [
        (tensors, {}, "no state of a picture"),
        (tensors, {**metadata, "version": "2"}, "format 2, this program reads 1"),
        (tensors, {**metadata, "position": "x"}, "damaged"),
        (tensors, {**metadata, "position": "160"}, "damaged"),
        ({**tensors, "ssm": tensors["ssm"] * float("nan")}, metadata, "damaged"),
        ({**tensors, "conv": tensors["conv"].to(torch.int32)}, metadata, "damaged"),
        ({"conv": tensors["conv"]}, metadata, "damaged"),
        ({**tensors, "ssm": tensors["ssm"][:1]}, metadata, "damaged"),
    ]
    for changed, said, message in cases:
        write_safetensors(path, changed, said)
        with pytest.raises(InputError, match=message) as caught:
            session.recall(path)
        assert str(path) in caught.value.message
    path.write_bytes(b"no safetensors")
    with pytest.raises(InputError, match="no state of a picture"):
        session.recall(path)
    with pytest.raises(InputError, match="no such file"):
        session.recall(tmp_path / "gone.state")


def test_a_model_that_only_draws_cannot_look(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    monkeypatch.setattr(session, "config", replace(session.config, towers=()))
    with pytest.raises(CheckpointError, match="it can only draw"):
        session.look(picture(1))
