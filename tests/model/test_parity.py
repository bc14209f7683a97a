"""The model against outputs of others: the reference implementation's (in ../shared), and a loop's (in tests/cases)."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from omnimamba_cli.config import Mamba2Config, ModelConfig, Task, TextConfig, TowerConfig, VQConfig
from omnimamba_cli.data.sequences import mmu_middle, mmu_prefix
from omnimamba_cli.model import convert
from omnimamba_cli.model.lora import merged
from omnimamba_cli.model.omnimamba import OmniMamba
from omnimamba_cli.model.vq import VQModel
from tests.cases import small
from tests.numerics import assert_close

SHARED = Path(__file__).parents[2].parent / "shared" / "parity"
TOLERANCE = 1e-4  # absolute, logits of size 1 to 10 in float32


@dataclass
class Case:
    """A model with weights, inputs and the outputs it must give. The reference's case has special ids of its own."""

    model: OmniMamba
    tensors: dict[str, Tensor]  # patches, *_ids, {task}.logits, {task}.greedy

    def prefix(self, task: Task) -> Tensor:
        """The embedded sequence that the greedy path continues (b l d)."""
        model, rows = self.model, len(self.tensors["patches"])
        if task == "t2i":
            return model.embed_caption(self.tensors["caption_ids"])
        before, after = (self.tensors[f"mmu_{part}_ids"].expand(rows, -1) for part in ("prefix", "middle"))
        patches, text = model.embed_patches(self.tensors["patches"]), model.embed_text(self.tensors["text_ids"])
        return torch.cat([model.embed_text(before), patches, model.embed_text(after), text], 1)

    def embed(self, task: Task) -> Callable[[Tensor], Tensor]:
        """What turns the task's tokens into inputs."""
        return self.model.embed_text if task == "mmu" else self.model.embed_codes


@functools.cache
def shared_case() -> Case:
    stored = load_file(SHARED / "omnimamba_small.safetensors")
    config = ModelConfig(
        name="parity",
        backbone=Mamba2Config(d_model=128, n_layer=2),
        text=TextConfig(base_vocab_size=166),
        vq=VQConfig(codebook_size=96),
        towers=(TowerConfig(name="none", width=64, patches=729, image_size=384, mean=(0.5,) * 3, std=(0.5,) * 3),),
    )
    theirs = {k.removeprefix("weights."): v for k, v in stored.items() if k.startswith("weights.")}
    model = OmniMamba(config).eval()
    model.load_state_dict(convert.from_published(theirs, config))
    tensors = {k.removeprefix("in."): v for k, v in stored.items() if not k.startswith("weights.")}
    return Case(model, tensors)


@functools.cache
def small_case() -> Case:
    tensors = {k: torch.from_numpy(v) for k, v in small.inputs().items()}
    tensors["mmu_prefix_ids"] = torch.tensor(mmu_prefix(small.CONFIG))
    tensors["mmu_middle_ids"] = torch.tensor(mmu_middle(small.CONFIG))
    return Case(small.model(), tensors | load_file(small.GOLDEN))


@pytest.fixture(params=["small", "shared"])
def case(request: pytest.FixtureRequest) -> Case:
    if request.param == "small":
        return small_case()
    if not (SHARED / "omnimamba_small.safetensors").is_file():
        pytest.skip("omnimamba_small.safetensors is not beside this checkout")
    return shared_case()


def folded(case: Case, task: Task, fold: bool) -> OmniMamba:
    return merged(case.model, task) if fold else case.model


def pieces(length: int) -> list[int]:
    """Lengths that add up: a single token, odd numbers, one across a chunk, the rest."""
    sizes, left = [], length
    for size in (1, 5, 2, 300, 257, 19):
        sizes.append(min(size, left))
        left -= sizes[-1]
    return [s for s in (*sizes, left) if s]


both_tasks = pytest.mark.parametrize("task", ["mmu", "t2i"])
both_ways = pytest.mark.parametrize("fold", [False, True], ids=["lora", "merged"])


@both_ways
@torch.inference_mode()
def test_mmu_logits(case: Case, fold: bool) -> None:
    model, want = folded(case, "mmu", fold), case.tensors["mmu.logits"]
    hidden = model(case.prefix("mmu"), "mmu")[:, -want.shape[1] :]
    torch.testing.assert_close(model.logits(hidden, "mmu"), want, atol=TOLERANCE, rtol=0)


@both_ways
@torch.inference_mode()
def test_t2i_logits(case: Case, fold: bool) -> None:
    model, want = folded(case, "t2i", fold), case.tensors["t2i.logits"]
    x = torch.cat([case.prefix("t2i"), model.embed_codes(case.tensors["image_ids"])], 1)
    hidden = model(x, "t2i")[:, case.tensors["caption_ids"].shape[1] - 1 :]
    torch.testing.assert_close(model.logits(hidden, "t2i"), want, atol=TOLERANCE, rtol=0)


@both_tasks
@both_ways
@torch.inference_mode()
def test_greedy_path_by_one_full_forward(case: Case, task: Task, fold: bool) -> None:
    model, path = folded(case, task, fold), case.tensors[f"{task}.greedy"]
    x = torch.cat([case.prefix(task), case.embed(task)(path[:, :-1])], 1)
    hidden = model(x, task)[:, -path.shape[1] :]
    assert model.logits(hidden, task).argmax(-1).equal(path)


@both_tasks
@both_ways
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "pieces"])
@torch.inference_mode()
def test_greedy_path_by_prefill_and_steps(case: Case, task: Task, fold: bool, cut: bool) -> None:
    model, path, prefix = folded(case, task, fold), case.tensors[f"{task}.greedy"], case.prefix(task)
    state = model.new_state(len(prefix))
    for piece in prefix.split(pieces(prefix.shape[1]) if cut else prefix.shape[1], 1):
        hidden = model(piece, task, state)
    got = []
    for _ in range(path.shape[1]):
        got.append(model.logits(hidden[:, -1:], task).argmax(-1))
        if len(got) < path.shape[1]:
            hidden = model(case.embed(task)(got[-1]), task, state)
    assert torch.cat(got, 1).equal(path)


def test_the_stored_outputs_are_the_loops() -> None:
    # a golden file that nobody can make again proves nothing
    again, margin = small.outputs()
    assert margin > 1e-3
    for name, stored in load_file(small.GOLDEN).items():
        torch.testing.assert_close(torch.from_numpy(again[name]), stored, atol=1e-6, rtol=0)


@both_tasks
def test_the_small_case_depends_on_every_tensor(task: Task) -> None:
    # a tensor the outputs do not depend on would be untested
    case = small_case()
    other = "t2i" if task == "mmu" else "mmu"
    foreign = {"mmu": ("caption_mlp", "image_", "t2i"), "t2i": ("projector", "mmu")}
    model = small.model()
    x = Case(model, case.tensors).prefix(task)
    if task == "t2i":
        x = torch.cat([x, model.embed_codes(case.tensors["image_ids"])], 1)
    model.logits(model(x, task), task).square().mean().backward()
    for name, parameter in model.named_parameters():
        used = not (name.startswith(foreign[task]) or f".lora.{other}." in name)
        reached = parameter.grad is not None and float(parameter.grad.norm()) > 1e-4
        assert used == reached, name


def test_float64_equals_the_loop_far_more_closely() -> None:
    case, again = small_case(), small.outputs()[0]
    model = small.model().double()
    wide = Case(model, {k: v.double() if v.is_floating_point() else v for k, v in case.tensors.items()})
    got = model.logits(model(wide.prefix("mmu"), "mmu")[:, -small.TEXT - 2 :], "mmu")
    # the loop's outputs are rounded to float32; the mixers' A and dt are computed there too
    assert_close("logits", torch.from_numpy(again["mmu.logits"]), got, 3e-7)


@functools.cache
def vq16() -> tuple[VQModel, dict[str, Tensor]]:
    path = SHARED / "vq16.safetensors"
    if not path.is_file():
        pytest.skip("vq16.safetensors is not beside this checkout")
    with safe_open(path, "pt") as file:
        shapes: dict[str, list[int]] = json.loads(file.metadata()["shapes"])
    weights = {name: vq_weight(name, tuple(shape)) for name, shape in shapes.items()}
    with torch.device("meta"):
        model = VQModel(VQConfig())
    kept, dropped = convert.from_vq(weights, convert.shapes_of(model.state_dict()))
    assert dropped in ([], ["quantize.codebook_used"])
    model.load_state_dict(kept, assign=True)
    return model.eval(), load_file(path)


def vq_weight(name: str, shape: tuple[int, ...]) -> Tensor:
    u = small.hashed(name, shape)
    if name == "quantize.embedding.weight":
        pass
    elif len(shape) > 1:
        u *= np.sqrt(3 / np.prod(shape[1:]))
    else:
        u = 0.05 * u if name.endswith("bias") else 1 + 0.1 * u
    return torch.from_numpy(u).float()


@torch.inference_mode()
def test_vq16_decodes_the_reference_picture() -> None:
    model, tensors = vq16()
    got = model.decode(tensors["decode.indices"].long())
    torch.testing.assert_close(got, tensors["decode.image"].float(), atol=5e-3, rtol=0)


@torch.inference_mode()
def test_vq16_encodes_to_the_reference_codes() -> None:
    model, tensors = vq16()
    got = model.encode(tensors["encode.image"].float())
    want = tensors["encode.indices_from_half"]
    assert got.shape == want.shape
    assert int((got == want).sum()) >= 255
