"""Task LoRA: chosen by argument, merged for inference, dropped out while training only."""

from dataclasses import replace

import pytest
import torch

from omnimamba_cli.config import TASKS, Mamba2Config, Task
from omnimamba_cli.model.lora import LoRALinear, merged
from omnimamba_cli.model.omnimamba import OmniMamba
from tests.cases import small
from tests.numerics import assert_close

CONFIG = Mamba2Config(d_model=32, headdim=16, lora_rank=4, lora_alpha=16.0, lora_dropout=0.0)
both_tasks = pytest.mark.parametrize("task", TASKS)


def linear(config: Mamba2Config = CONFIG, *, fresh: bool = False) -> LoRALinear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        result = LoRALinear(32, 20, config)
        for pair in result.lora.values():
            if not fresh:
                torch.nn.init.normal_(pair.B, std=0.3)
    return result


def inputs(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, 32, generator=torch.Generator().manual_seed(1))


def randomly(seed: int, layer: LoRALinear, x: torch.Tensor) -> torch.Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return layer(x, "mmu")


@both_tasks
@pytest.mark.parametrize("training", [False, True])
def test_a_fresh_pair_changes_nothing(task: Task, training: bool) -> None:
    layer = linear(replace(CONFIG, lora_dropout=0.5), fresh=True).train(training)
    x = inputs(5)
    assert torch.equal(layer(x, task), x @ layer.weight.mT)


@both_tasks
def test_a_pair_adds_its_scaled_product(task: Task) -> None:
    layer, x = linear(), inputs(5)
    pair = layer.lora[task]
    want = x @ layer.weight.mT + 16.0 / 4 * (x @ pair.A.mT @ pair.B.mT)
    assert_close("output", want, layer(x, task), 1e-6)


def test_rank_zero_has_no_pairs() -> None:
    layer, x = linear(replace(CONFIG, lora_rank=0)), inputs(5)
    assert list(layer.state_dict()) == ["weight"]
    assert torch.equal(layer(x, "mmu"), x @ layer.weight.mT)
    assert torch.equal(layer.merged_weight("t2i"), layer.weight)


@pytest.mark.parametrize("dropout", [0.0, 0.05])
def test_gradients_reach_only_the_active_tasks_pair(dropout: float) -> None:
    layer = linear(replace(CONFIG, lora_dropout=dropout)).train()
    randomly(0, layer, inputs(5)).square().sum().backward()
    for name in ("A", "B"):
        assert float(getattr(layer.lora["mmu"], name).grad.norm()) > 0
        assert getattr(layer.lora["t2i"], name).grad is None


def test_gradients_of_both_branches_are_the_same() -> None:
    # one multiplies a summed weight, the other sums two outputs
    grads = []
    for dropout in (0.0, 1e-12):
        layer = linear(replace(CONFIG, lora_dropout=dropout)).train()
        x = inputs(5).requires_grad_()
        layer(x, "mmu").sin().sum().backward()
        grads.append([x.grad, layer.weight.grad, layer.lora["mmu"].A.grad, layer.lora["mmu"].B.grad])
    for want, got in zip(*grads, strict=True):
        assert_close("gradient", want, got, 1e-5)


def test_dropout_is_for_training_only() -> None:
    layer, x = linear(replace(CONFIG, lora_dropout=0.5)), inputs(5)
    layer.train()
    assert not torch.equal(randomly(0, layer, x), randomly(1, layer, x))
    layer.eval()
    assert torch.equal(randomly(0, layer, x), randomly(1, layer, x))


def test_dropout_leaves_the_base_weight_alone() -> None:
    layer, x = linear(replace(CONFIG, lora_dropout=0.999)).train(), inputs(1)
    # almost every input of the pair is dropped, none of the base's
    assert torch.equal(randomly(0, layer, x), x @ layer.weight.mT)


def test_dropout_keeps_the_expectation() -> None:
    layer, x = linear(replace(CONFIG, lora_dropout=0.2)), inputs(1)
    want = layer.eval()(x, "mmu") - x @ layer.weight.mT
    with torch.no_grad():
        drawn = randomly(0, layer.train(), x.expand(40_000, 32)) - x @ layer.weight.mT
    # the standard error of 40,000 draws is about 0.3 %
    assert_close("mean", want, drawn.mean(0, keepdim=True), 0.02)


# merging


@both_tasks
@torch.inference_mode()
def test_a_merged_model_equals_the_unmerged(task: Task) -> None:
    model = small.model()
    x = torch.randn(2, 30, 64, generator=torch.Generator().manual_seed(0))
    assert_close("hidden", model(x, task), merged(model, task)(x, task), 2e-6)


@both_tasks
def test_a_merged_model_refuses_the_other_task(task: Task) -> None:
    other: Task = "t2i" if task == "mmu" else "mmu"
    with pytest.raises(ValueError, match=f"merged for '{task}'; it cannot run '{other}'"):
        merged(small.model(), task)(torch.zeros(1, 2, 64), other)


@both_tasks
def test_a_merged_model_shares_all_other_tensors(task: Task) -> None:
    model = small.model()
    clone = merged(model, task)
    theirs = dict(model.named_parameters())
    for name, tensor in clone.named_parameters():
        shared = tensor.data_ptr() == theirs[name].data_ptr()
        assert shared != name.endswith("in_proj.weight"), name
    assert not [name for name, _ in clone.named_parameters() if ".lora." in name]


def test_merging_leaves_the_model_as_it_was() -> None:
    model = small.model()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    merged(model, "mmu")
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_merging_sums_in_float32_and_rounds_once() -> None:
    layer = linear().bfloat16()
    pair = layer.lora["mmu"]
    exact = layer.weight.double() + 4 * (pair.B.double() @ pair.A.double())
    merged_weight = layer.merged_weight("mmu")
    assert merged_weight.dtype == torch.bfloat16
    assert torch.equal(merged_weight, exact.float().bfloat16())


def test_gradients_of_a_whole_model_stay_in_its_task() -> None:
    model = OmniMamba(small.CONFIG).train()
    model(torch.ones(1, 4, 64), "t2i").sum().backward()
    touched = {name for name, p in model.named_parameters() if ".lora." in name and p.grad is not None}
    assert touched == {name for name, _ in model.named_parameters() if ".lora.t2i." in name}
