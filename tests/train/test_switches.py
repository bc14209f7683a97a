"""Training what the paper compares itself with: which rows compete, what trains in which stage, what is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from omnimamba_cli.config import LoRA, ModelConfig, Vocabulary
from omnimamba_cli.data.batches import Collate, DrawBatch
from omnimamba_cli.data.sequences import mmu_middle, mmu_prefix, t2i_prefix
from omnimamba_cli.data.talks import Talk
from omnimamba_cli.engine.session import Session
from omnimamba_cli.engine.training import Progress, StageSettings, train
from omnimamba_cli.errors import CheckpointError, InputError
from omnimamba_cli.model.omnimamba import OmniMamba
from omnimamba_cli.presets import PRESETS, with_switches
from omnimamba_cli.train.language import Objective
from omnimamba_cli.train.stages import merge, part_of, trainable_names
from tests.train.conftest import Data, loop, stage, summed

SWITCHED: list[tuple[Vocabulary | None, LoRA | None]] = [("shared", None), (None, "shared"), ("shared", "none")]


@pytest.fixture(autouse=True)
def _preset(tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "tiny", tiny_config)


def fresh(kind: str, data: Data, parts: Path, output: Path, **changes: Any) -> StageSettings:
    """A run from nothing, with the parts of a model directory."""
    return stage(kind, data, "tiny", output, tokenizer=parts, vision=parts, vq=parts, **changes)


def losses(settings: StageSettings) -> list[float]:
    return [event.values["loss"] for event in train(settings) if isinstance(event, Progress)]


def names(config: ModelConfig) -> set[str]:
    with torch.device("meta"):
        return {name for name, _ in OmniMamba(config).named_parameters()}


# what trains


def test_a_shared_vocabulary_trains_where_either_table_does(tiny_config: ModelConfig) -> None:
    own, shared = names(tiny_config), names(with_switches(tiny_config, "shared", None))
    apart = {"text_embedding.weight", "image_embedding.weight"}
    for number, task, opened in ((1, "t2i", ()), (1, "mmu", ("text_embedding",)), (2, None, ())):
        want = trainable_names(own, number, task, opened) - apart | {"vocabulary.weight"}  # type: ignore[arg-type]
        assert trainable_names(shared, number, task, opened) == want  # type: ignore[arg-type]
    assert "vocabulary.weight" not in trainable_names(shared, 1, "mmu")


def test_a_shared_pair_trains_in_every_stage(tiny_config: ModelConfig) -> None:
    one = names(with_switches(tiny_config, None, "shared"))
    pair = {f"layers.{i}.mixer.in_proj.lora.shared.{x}" for i in (0, 1) for x in "AB"}
    assert {name for name in one if ".lora." in name} == pair
    for number, task in ((1, "mmu"), (1, "t2i"), (2, None)):
        assert pair <= trainable_names(one, number, task)  # type: ignore[arg-type]


@pytest.mark.parametrize(("vocabulary", "lora"), SWITCHED)
def test_every_parameter_of_a_variant_trains_in_stage_2(
    tiny_config: ModelConfig, vocabulary: Vocabulary | None, lora: LoRA | None
) -> None:
    every = names(with_switches(tiny_config, vocabulary, lora))
    assert trainable_names(every, 2, None) == every


def test_without_lora_stage_1_of_mmu_trains_the_projector(tiny_config: ModelConfig) -> None:
    bare = names(with_switches(tiny_config, None, "none"))
    assert {part_of(name) for name in trainable_names(bare, 1, "mmu")} == {"projector"}


# the loss


def test_the_loss_of_drawing_is_over_all_rows_of_a_shared_vocabulary(tiny_config: ModelConfig) -> None:
    model = OmniMamba(with_switches(tiny_config, "shared", None)).eval()
    prefix = torch.tensor([t2i_prefix(tiny_config, [5, 6, 7])], dtype=torch.int32)
    codes = torch.arange(tiny_config.vq.codes)[None] % tiny_config.vq.codebook_size
    with torch.no_grad():
        found = summed(Objective(model, None, {"t2i": 1.0}), DrawBatch(prefix, codes.int()))
        x = torch.cat([model.embed_caption(prefix), model.embed_codes(codes[:, :-1])], 1)
        hidden = model(x, "t2i")[0, prefix.shape[1] - 1 :]
        log_p = (hidden @ model.vocabulary.weight.T).log_softmax(-1)
        want = -log_p[range(len(hidden)), tiny_config.text.vocab_size + codes[0]].sum()
    torch.testing.assert_close(found, want, rtol=1e-5, atol=0.0)


def test_the_loss_of_answering_is_over_all_rows_of_a_shared_vocabulary(tiny_config: ModelConfig) -> None:
    model = OmniMamba(with_switches(tiny_config, "shared", None)).eval()
    batch = Collate(tiny_config)([Talk(None, [4, 9, 0], [False, True, True])])
    lead = [mmu_prefix(tiny_config)[0], mmu_middle(tiny_config)[-1]]
    with torch.no_grad():
        found = summed(Objective(model, None, {"mmu": 1.0}), batch)
        hidden = model(model.embed_text(torch.tensor([[*lead, 4, 9]])), "mmu")[0, -2:]
        want = -(hidden @ model.vocabulary.weight.T).log_softmax(-1)[[0, 1], [9, 0]].sum()
    torch.testing.assert_close(found, want, rtol=1e-5, atol=0.0)


# runs


def test_a_variant_learns_from_nothing_and_answers(data: Data, tiny_model: Path, tmp_path: Path) -> None:
    config = loop(steps=50, lr=1e-2, log_every=25)
    settings = fresh("both", data, tiny_model, tmp_path / "out", loop=config, batch_mmu=8, batch_t2i=2)
    found = losses(dataclasses.replace(settings, vocabulary="shared", lora="shared"))
    assert found[-1] < 0.7 * found[0]
    session = Session(tmp_path / "out", device="cpu")
    assert session.config.deviations == ("one vocabulary of text and codes", "one LoRA pair for both tasks")
    assert session.caption(data.folder / "0.png", "what is here?") == "a red house"
    assert session.generate("a red house", seed=1)[0].size == (32, 32)


def test_stages_joined_are_stage_2_from_a_preset(data: Data, tiny_model: Path, tmp_path: Path) -> None:
    assert len(losses(fresh("both", data, tiny_model, tmp_path / "out", loop=loop(steps=1)))) == 1
    done = load_file(tmp_path / "out" / "model.safetensors")
    start = PRESETS["tiny"]
    torch.manual_seed(0)
    before = OmniMamba(start).state_dict()
    # B starts at zero, so the first step leaves its A alone
    assert {n for n in before if torch.equal(before[n], done[n])} == {n for n in before if n.endswith(".A")}


def test_a_variant_resumes_to_the_bit(data: Data, tiny_model: Path, tmp_path: Path) -> None:
    config = loop(steps=4, save_every=2, keep=9)
    whole = fresh("t2i", data, tiny_model, tmp_path / "whole", loop=config, vocabulary="shared", lora="shared")
    list(train(whole))
    halves = dataclasses.replace(whole, output=tmp_path / "halves")
    for event in train(halves):
        if isinstance(event, Progress) and event.step == 3:
            break
    list(train(dataclasses.replace(halves, resume=True)))
    one, two = (load_file(run.output / "model.safetensors") for run in (whole, halves))
    assert all(torch.equal(one[name], two[name]) for name in one)
    with pytest.raises(InputError, match=r"trains other tensors; first: model.image_embedding"):
        list(train(dataclasses.replace(whole, resume=True, vocabulary=None)))


def test_a_base_is_switched_and_keeps_its_rows(data: Data, tiny_model: Path, tmp_path: Path) -> None:
    settings = stage("mmu", data, tiny_model, tmp_path / "out", loop=loop(steps=1), vocabulary="shared", lora="none")
    assert len(losses(settings)) == 1
    before, after = (load_file(p / "model.safetensors") for p in (tiny_model, tmp_path / "out"))
    rows = torch.cat([before["text_embedding.weight"], before["image_embedding.weight"]])
    assert torch.equal(after["vocabulary.weight"], rows)
    assert torch.equal(after["layers.1.mixer.in_proj.weight"], before["layers.1.mixer.in_proj.weight"])
    assert not [name for name in after if ".lora." in name]
    assert Session(tmp_path / "out", device="cpu").config.deviations == ("one vocabulary of text and codes",)


def test_trained_pairs_are_not_thrown_away(data: Data, tiny_model: Path, tmp_path: Path) -> None:
    list(train(stage("t2i", data, tiny_model, tmp_path / "t2i", loop=loop(steps=1))))
    for lora in ("shared", "none"):
        with pytest.raises(CheckpointError, match=r"trained LoRA pairs, which would be lost; first: .*lora\.t2i\.B"):
            list(train(stage("mmu", data, tmp_path / "t2i", tmp_path / "out", lora=lora)))
    assert not (tmp_path / "out").exists()
    same = stage("mmu", data, tmp_path / "t2i", tmp_path / "out", vocabulary="decoupled", lora="task")
    assert len(losses(same)) == 4


# merging two results of stage 1


def halves(config: ModelConfig) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What stage 1 makes of one base for each task, its trained tensors moved."""
    base = OmniMamba(config).state_dict()
    mmu = {n: t + 1 if n in trainable_names(base, 1, "mmu") else t for n, t in base.items()}
    t2i = {n: t + 2 if n in trainable_names(base, 1, "t2i") else t for n, t in base.items()}
    return mmu, t2i


def test_merging_takes_a_shared_vocabulary_from_the_task_that_trained_it(tiny_config: ModelConfig) -> None:
    mmu, t2i = halves(with_switches(tiny_config, "shared", None))
    merged = merge(mmu, t2i)
    assert torch.equal(merged["vocabulary.weight"], t2i["vocabulary.weight"])
    assert torch.equal(merged["projector.0.weight"], mmu["projector.0.weight"])


def test_a_pair_that_both_stages_trained_cannot_be_merged(tiny_config: ModelConfig) -> None:
    with pytest.raises(CheckpointError, match=r"the LoRA pair that the tasks share; first: .*lora\.shared") as caught:
        merge(*halves(with_switches(tiny_config, None, "shared")))
    assert "from the result of t2i" in str(caught.value.hint)


def test_results_of_different_variants_do_not_merge(data: Data, tiny_model: Path, tmp_path: Path) -> None:
    for task, vocabulary in (("mmu", "decoupled"), ("t2i", "shared")):
        settings = fresh(task, data, tiny_model, tmp_path / task, loop=loop(steps=1), vocabulary=vocabulary)
        list(train(settings))
    both = {"init_mmu": tmp_path / "mmu", "init_t2i": tmp_path / "t2i"}
    with pytest.raises(CheckpointError, match=r"differ in config\.json: vocabulary"):
        list(train(stage("both", data, None, tmp_path / "both", **both)))
