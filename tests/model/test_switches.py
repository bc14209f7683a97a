"""What the paper compares itself with: each variant is the paper's model with rows or pairs put together."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from omnimamba_cli.config import TASKS, LoRA, ModelConfig, Task, Vocabulary
from omnimamba_cli.engine.card import render
from omnimamba_cli.engine.checkpoint import ModelFiles, load_directory, save_directory
from omnimamba_cli.engine.decode import decode_image, decode_text
from omnimamba_cli.engine.decoder import Decoder
from omnimamba_cli.engine.task_models import load_for_task
from omnimamba_cli.errors import CheckpointError, ConfigError
from omnimamba_cli.model import convert
from omnimamba_cli.model.lora import merged
from omnimamba_cli.model.omnimamba import OmniMamba
from omnimamba_cli.model.quantized import quantize
from omnimamba_cli.model.switches import switched
from omnimamba_cli.ops.step import StepKernels
from omnimamba_cli.presets import with_switches
from tests.cases import small
from tests.engine.test_decode import GREEDY, SAMPLED, STEPS, captions, prefix, text
from tests.numerics import assert_close

TEXT = small.CONFIG.text.vocab_size
CODES = small.CONFIG.vq.codebook_size
BASE = small.CONFIG.text.base_vocab_size
EXACT = 2e-6  # float32 sums in another order
VARIANTS: dict[str, tuple[Vocabulary | None, LoRA | None]] = {
    "vocabulary": ("shared", None),
    "lora": (None, "shared"),
    "none": (None, "none"),
    "both": ("shared", "shared"),
    "neither": ("shared", "none"),
}
all_variants = pytest.mark.parametrize("name", VARIANTS)
both_tasks = pytest.mark.parametrize("task", TASKS)


def config(name: str) -> ModelConfig:
    return with_switches(small.CONFIG, *VARIANTS[name])


def pair(name: str) -> tuple[OmniMamba, OmniMamba]:
    """A variant, and the paper's model that must do the same: equal pairs for both tasks, or pairs that are zero."""
    paper, variant = small.model(), OmniMamba(config(name)).eval()
    with torch.no_grad():
        for key, tensor in paper.named_parameters():
            if ".lora.t2i." in key:
                tensor.copy_(paper.get_parameter(key.replace("t2i", "mmu")))
            if ".lora." in key and key.endswith(".B") and VARIANTS[name][1] == "none":
                tensor.zero_()
            if ".lora." in key and VARIANTS[name][1] is None:
                tensor.copy_(small.model().get_parameter(key))
    theirs = {k.replace(".lora.mmu.", ".lora.shared."): t for k, t in paper.state_dict().items()}
    state = {**theirs, **paper.state_dict()}
    state["vocabulary.weight"] = torch.cat([paper.text_embedding.weight, paper.image_embedding.weight])
    variant.load_state_dict({key: state[key] for key in variant.state_dict()})
    return paper, variant


def embedded(model: OmniMamba, task: Task) -> Tensor:
    given = {k: torch.from_numpy(v) for k, v in small.inputs().items()}
    if task == "mmu":
        return torch.cat([model.embed_patches(given["patches"]), model.embed_text(given["text_ids"])], 1)
    return torch.cat([model.embed_caption(given["caption_ids"]), model.embed_codes(given["image_ids"])], 1)


@all_variants
@both_tasks
@torch.inference_mode()
def test_a_variant_computes_what_the_papers_model_of_the_same_rows_does(name: str, task: Task) -> None:
    paper, variant = pair(name)
    hidden = variant(embedded(variant, task), task)
    assert_close("hidden", paper(embedded(paper, task), task), hidden, EXACT)
    assert_close("scores", paper.logits(hidden, task), variant.logits(hidden, task), EXACT)


@both_tasks
@torch.inference_mode()
def test_in_training_all_rows_of_a_shared_vocabulary_compete(task: Task) -> None:
    paper, variant = pair("vocabulary")
    hidden = variant(embedded(variant, task), task)
    rows = torch.cat([paper.logits(hidden, "mmu"), paper.logits(hidden, "t2i")], -1)
    scores = variant.training_logits(hidden, task)
    assert scores.shape[-1] == TEXT + CODES
    assert_close("scores", rows, scores, EXACT)
    first = variant.first_row(task)
    assert_close("own", scores[..., first : first + len(variant.head(task))], variant.logits(hidden, task), EXACT)


def test_the_papers_model_trains_on_its_tasks_scores_alone() -> None:
    model = small.model()
    hidden = torch.ones(1, 64)
    for task in TASKS:
        assert torch.equal(model.training_logits(hidden, task), model.logits(hidden, task))
        assert model.first_row(task) == 0


@torch.inference_mode()
def test_codes_of_a_shared_vocabulary_are_the_same_by_entry_and_by_place() -> None:
    model = pair("vocabulary")[1]
    few = torch.tensor([[0, 5, CODES - 1]])
    many = torch.cat([few, torch.zeros(1, CODES, dtype=torch.int64)], 1)
    assert_close("embedded", model.embed_codes(few), model.embed_codes(many)[:, :3], EXACT)


@all_variants
def test_names_and_shapes_are_the_format(name: str) -> None:
    got = {key: tuple(t.shape) for key, t in OmniMamba(config(name)).state_dict().items()}
    assert got == convert.own_shapes(config(name))
    vocabulary, lora = VARIANTS[name]
    assert ("vocabulary.weight" in got) is (vocabulary == "shared")
    assert ("text_embedding.weight" in got) is (vocabulary is None)
    pairs = {key.split(".lora.")[1][:-2] for key in got if ".lora." in key}
    assert pairs == {"shared": {"shared"}, "none": set(), None: set(TASKS)}[lora]


# decoding


def forbidden(variant: OmniMamba, hidden: Tensor, task: Task) -> Tensor:
    """The best of all rows, of which those that the task may not write are forbidden."""
    scores = variant.training_logits(hidden, task)
    allowed = torch.full_like(scores, -torch.inf)
    ids = slice(0, BASE) if task == "mmu" else slice(TEXT, TEXT + CODES)
    allowed[..., ids] = scores[..., ids]
    return allowed.argmax(-1) - variant.first_row(task)


@torch.inference_mode()
def test_what_is_written_is_the_best_of_all_rows_with_the_other_tasks_forbidden() -> None:
    variant = pair("vocabulary")[1]
    variant.vocabulary.weight[BASE:TEXT] *= 30  # special tokens would win every step
    ids = captions([1, 2, 3], [])
    answer, codes = text(variant, prefix(1), GREEDY, [0])[0], decode_image(variant, ids, GREEDY, seeds=[0, 1])
    read = torch.cat([prefix(1), variant.embed_text(torch.tensor([answer]))], 1)
    want = forbidden(variant, variant(read, "mmu")[:, prefix(1).shape[1] - 1 : -1], "mmu")
    assert answer == want[0].tolist()
    variant.vocabulary.weight[:BASE] *= 30  # text would win every step
    codes = decode_image(variant, ids, GREEDY, seeds=[0, 1])
    read = torch.cat([variant.embed_caption(ids), variant.embed_codes(codes)], 1)
    assert torch.equal(codes, forbidden(variant, variant(read, "t2i")[:, ids.shape[1] - 1 : -1], "t2i"))


@all_variants
@torch.inference_mode()
def test_steps_on_memory_that_stays_are_the_plain_loops(name: str) -> None:
    variant = pair(name)[1]
    mmu, t2i = merged(variant, "mmu"), merged(variant, "t2i")
    want = text(mmu, prefix(), SAMPLED, list(range(6)))
    got: list[list[int]] = [[] for _ in range(6)]
    for step in Decoder(mmu, "mmu", StepKernels()).text(mmu, prefix(), SAMPLED, steps=STEPS, seeds=list(range(6))):
        for row, token in step:
            got[row].append(token)
    assert got == want
    guided = replace(SAMPLED, guidance=2.5)
    ids = captions([1, 2, 3], [])
    drawn = Decoder(t2i, "t2i", StepKernels()).image(t2i, ids, guided, seeds=[3])
    assert torch.equal(drawn, decode_image(t2i, ids, guided, seeds=[3]))
    assert torch.equal(drawn, decode_image(variant, ids, guided, seeds=[3])), "merging changes nothing"


@torch.inference_mode()
def test_a_quantized_shared_vocabulary_writes_but_does_not_train() -> None:
    narrow = quantize(merged(pair("vocabulary")[1], "mmu"), "mmu", "int8")
    hidden = narrow(prefix(), "mmu")
    assert narrow.logits(hidden, "mmu").shape[-1] == TEXT
    assert next(iter(decode_text(narrow, prefix(), GREEDY, steps=1, seeds=[0] * 6)))
    with pytest.raises(ValueError, match="scores one task's rows alone"):
        narrow.training_logits(hidden, "mmu")


# files


@all_variants
def test_a_directory_comes_back_and_each_task_is_read_with_its_pair_folded_in(name: str, tmp_path: Path) -> None:
    variant, directory = pair(name)[1], tmp_path / "m"
    save_directory(directory, ModelFiles(config(name), model=variant))
    loaded = load_directory(directory, parts=("model",))
    assert loaded.config == config(name)
    other = None
    for task in TASKS:
        options = {"device": torch.device("cpu"), "dtype": torch.float32, "other": other}
        model = load_for_task(directory, task, **options)  # type: ignore[arg-type]
        want = merged(variant, task).state_dict()
        assert model.state_dict().keys() <= want.keys()
        for key, tensor in model.state_dict().items():
            torch.testing.assert_close(tensor, want[key], rtol=0, atol=1e-6)
        if other is not None:  # what the tasks share is in memory once; their own pairs make two weights
            same = model.layers[0].mixer.in_proj.weight.data_ptr() == other.layers[0].mixer.in_proj.weight.data_ptr()
            assert same is (VARIANTS[name][1] is not None)
        other = model


def test_a_file_of_another_variant_is_refused_by_name(tmp_path: Path) -> None:
    directory = tmp_path / "m"
    save_directory(directory, ModelFiles(config("both"), model=small.model()))
    with pytest.raises(
        CheckpointError, match=r"vocabulary\.weight is missing.*image_embedding\.weight is not expected"
    ):
        load_directory(directory, parts=("model",))


@pytest.mark.parametrize("layout", [convert.published_names, convert.base_names])
def test_other_layouts_have_no_place_for_shared_parts(layout: Callable[[ModelConfig], object]) -> None:
    for name in ("vocabulary", "lora"):
        with pytest.raises(CheckpointError, match="the published layout has no such"):
            layout(config(name))
    with pytest.raises(CheckpointError, match="one vocabulary of text and codes and one LoRA pair"):
        convert.to_published({}, config("both"))


def test_the_card_says_what_is_not_the_papers() -> None:
    assert "Unlike" not in render(small.CONFIG, {})
    assert "Unlike the paper's, this model has one LoRA pair for both tasks." in render(config("lora"), {})


# one model under another choice


@all_variants
@torch.inference_mode()
def test_a_model_of_fresh_pairs_computes_the_same_however_its_parts_are_shared(name: str) -> None:
    paper = small.model()
    for key, tensor in paper.named_parameters():
        if ".lora." in key and key.endswith(".B"):
            tensor.zero_()
    other = OmniMamba(config(name)).eval()
    other.load_state_dict(switched(paper.state_dict(), small.CONFIG, config(name)))
    back = OmniMamba(small.CONFIG).eval()
    back.load_state_dict(switched(other.state_dict(), config(name), small.CONFIG))
    for task in TASKS:
        hidden = paper(embedded(paper, task), task)
        for model in (other, back):
            assert_close("hidden", hidden, model(embedded(model, task), task), EXACT)
            assert_close("scores", paper.logits(hidden, task), model.logits(hidden, task), EXACT)


def test_trained_pairs_are_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match=r"trained LoRA pairs.*first: layers\.0\.mixer\.in_proj\.lora\.mmu\.B"):
        switched(small.model().state_dict(), small.CONFIG, config("lora"))


# settings


def test_defaults_are_the_papers_and_the_switches_survive_json() -> None:
    assert with_switches(small.CONFIG, None, None) == small.CONFIG
    assert with_switches(small.CONFIG, "decoupled", "task") == small.CONFIG
    assert ModelConfig(name="x").deviations == ()
    for name in VARIANTS:
        assert ModelConfig.from_dict(config(name).to_dict()) == config(name)
    assert with_switches(config("none"), None, "task").backbone.lora_rank == 8


def test_a_word_that_is_no_switch_is_refused() -> None:
    with pytest.raises(ConfigError, match="vocabulary is 'split'; it can be one of 'decoupled', 'shared'"):
        ModelConfig.from_dict({"name": "x", "vocabulary": "split"})


def test_fresh_pairs_of_a_converted_base_are_those_of_its_config() -> None:
    fresh = convert.fresh_tensors(config("lora"), seed=0)
    assert {key for key in fresh if ".lora." in key} == {
        f"layers.{i}.mixer.in_proj.lora.shared.{part}" for i in range(2) for part in "AB"
    }
