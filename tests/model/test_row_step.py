"""The step made for a CPU is the model's own forward, token by token, in any batch."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import omnimamba_cli as om
from omnimamba_cli.config import Task
from omnimamba_cli.engine.steps import ONE_THREAD, PlainSteps, RowSteps, Steps, steps_for
from omnimamba_cli.errors import InputError
from omnimamba_cli.model.lora import merged
from omnimamba_cli.model.omnimamba import OmniMamba
from omnimamba_cli.model.quantized import quantize
from omnimamba_cli.model.row_step import Norm
from omnimamba_cli.ops import packed_int8, registry
from tests.cases import small
from tests.numerics import assert_close, relative_error

ROWS, PREFIX = 3, 8
# of the logits; sums in float32 in another order, and in half precision the same roundings at other places
BOUNDS = {torch.float32: 2e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def small_model(task: Task, dtype: torch.dtype = torch.float32) -> OmniMamba:
    model = merged(small.model().eval(), task)
    for name, parameter in model.named_parameters():
        if not name.endswith((".A_log", ".dt_bias", ".D")):
            parameter.data = parameter.data.to(dtype)
    return model


def embed(model: OmniMamba, task: Task, ids: Tensor) -> Tensor:
    return model.embed_text(ids) if task == "mmu" else model.embed_codes(ids)


def ids(count: int, rows: int = ROWS) -> Tensor:
    return torch.randint(29, (rows, count), generator=torch.Generator().manual_seed(4))


def walk(model: OmniMamba, task: Task, tokens: Tensor, kind: type = RowSteps) -> Tensor:
    """Logits (b l v) after a prefix of PREFIX tokens and each token that follows."""
    state = model.new_state(len(tokens))
    model(embed(model, task, tokens[:, :PREFIX]), task, state)
    steps: Steps = kind(model, task, state)
    return torch.stack([steps(token).clone() for token in tokens[:, PREFIX:].t()], dim=1)


@pytest.mark.parametrize("task", ["mmu", "t2i"])
def test_a_prefix_and_steps_are_one_full_forward(task: Task) -> None:
    model, tokens = small_model(task), ids(20)
    want = model.logits(model(embed(model, task, tokens), task), task)[:, PREFIX:]
    assert_close("logits", want, walk(model, task, tokens), BOUNDS[torch.float32])


@pytest.mark.parametrize("length", [1, 2])
def test_a_prefix_shorter_than_the_convolution_is_no_exception(length: int) -> None:
    model, tokens = small_model("mmu"), ids(6)
    state = model.new_state(ROWS)
    model(model.embed_text(tokens[:, :length]), "mmu", state)
    steps = RowSteps(model, "mmu", state)
    got = [steps(token).clone() for token in tokens[:, length:].t()]
    want = model.logits(model(model.embed_text(tokens), "mmu"), "mmu")[:, length:]
    assert_close("logits", want, torch.stack(got, dim=1), BOUNDS[torch.float32])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_as_close_as_it_can_be(dtype: torch.dtype) -> None:
    model, tokens = small_model("mmu", dtype), ids(20)
    assert_close("logits", walk(model, "mmu", tokens, PlainSteps), walk(model, "mmu", tokens), BOUNDS[dtype])


def test_every_row_gets_what_it_gets_alone() -> None:
    model, tokens = small_model("t2i"), ids(20, rows=9)
    together = walk(model, "t2i", tokens)
    alone = torch.cat([walk(model, "t2i", row[None]) for row in tokens])
    assert_close("logits", alone, together, BOUNDS[torch.float32])


def test_rows_that_are_left_go_on_as_before() -> None:
    model, tokens = small_model("mmu"), ids(20)
    state = model.new_state(ROWS)
    model(model.embed_text(tokens[:, :PREFIX]), "mmu", state)
    steps = RowSteps(model, "mmu", state)
    for token in tokens[:, PREFIX:14].t():
        steps(token)
    left = torch.tensor([2, 0])
    steps.select(left)
    got = [steps(token).clone() for token in tokens[left, 14:].t()]
    assert_close("logits", walk(model, "mmu", tokens)[left, 14 - PREFIX :], torch.stack(got, 1), 1e-6)


def test_the_state_it_started_from_stays_as_it_was() -> None:
    model, tokens = small_model("mmu"), ids(9)
    state = model.new_state(ROWS)
    model(model.embed_text(tokens[:, :PREFIX]), "mmu", state)
    before = state.clone()
    RowSteps(model, "mmu", state)(tokens[:, -1])
    assert torch.equal(state.ssm, before.ssm)
    assert torch.equal(state.conv, before.conv)


def test_past_the_last_position_it_says_so() -> None:
    model = small_model("mmu")
    state = model.new_state(1)
    state.position = len(model.mmu_positions) - 1
    steps = RowSteps(model, "mmu", state)
    steps(torch.tensor([1]))
    with pytest.raises(InputError, match="62 tokens are past the model's limit of 61"):
        steps(torch.tensor([1]))


@pytest.mark.parametrize("task", ["t2i", "mmu"])
def test_nano_greedily_writes_the_same_tokens(task: Task) -> None:
    model = om.load("nano", device="cpu").for_task(task)
    tokens, written = torch.tensor([[5, 9, 17, 33, 2, 801, 44, 8]]), []
    for kind in (PlainSteps, RowSteps):
        state = model.new_state(1)
        logits = model.logits(model(embed(model, task, tokens), task, state)[:, -1], task)
        steps, chosen, last = kind(model, task, state), [], []
        for _ in range(48):
            chosen.append(int(logits.argmax()))
            last.append(logits.clone())
            logits = steps(torch.tensor([chosen[-1]]))
        written.append((chosen, torch.cat(last)))
    assert written[0][0] == written[1][0]
    assert relative_error(written[0][1], written[1][1]) < 1e-5  # measured 1e-6


@pytest.mark.skipif(packed_int8.refusal() is not None, reason=str(packed_int8.refusal()))
def test_int8_steps_and_forward_run_on_the_same_packed_weights() -> None:
    narrow = quantize(small_model("mmu"), "mmu", "int8", pack=True)
    tokens = ids(20)
    want = narrow.logits(narrow(narrow.embed_text(tokens), "mmu"), "mmu")[:, PREFIX:]
    assert_close("logits", want, walk(narrow, "mmu", tokens), 2e-3)  # inputs in 14 bits
    plain = quantize(small_model("mmu"), "mmu", "int8")
    assert_close("logits", plain.logits(plain(plain.embed_text(tokens), "mmu"), "mmu")[:, PREFIX:], want, 2e-3)


def test_narrow_weights_without_a_fast_product_are_widened() -> None:
    narrow, tokens = quantize(small_model("mmu"), "mmu", "fp8"), ids(20)
    assert_close("logits", walk(narrow, "mmu", tokens, PlainSteps), walk(narrow, "mmu", tokens), 1e-5)


def test_weights_that_were_narrowed_since_are_the_ones_that_run() -> None:
    model, tokens = small_model("mmu"), ids(12)
    wide = walk(model, "mmu", tokens)
    narrow = walk(quantize(model, "mmu", "int8"), "mmu", tokens)
    assert 1e-3 < relative_error(wide, narrow) < 0.05


def test_which_step_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model("mmu")
    assert isinstance(steps_for(model, "mmu", model.new_state(1)), RowSteps)
    assert isinstance(steps_for(model, "t2i", model.new_state(1)), PlainSteps), "merged for the other task"
    wide = model.double()
    assert isinstance(steps_for(wide, "mmu", wide.new_state(1)), PlainSteps), "float64 stays float64"
    monkeypatch.setenv(registry.ENVIRONMENT, "torch")
    model = small_model("mmu")
    assert isinstance(steps_for(model, "mmu", model.new_state(1)), PlainSteps)


def test_the_number_of_threads_is_given_back() -> None:
    model = small_model("mmu")
    steps = RowSteps(model, "mmu", model.new_state(1))
    assert sum(p.numel() for p in model.parameters()) < ONE_THREAD
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        steps(torch.tensor([1]))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("size", [0.0, 1e-4, 1.0, 1e6])
def test_the_norm_is_rms_norm(size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = size * torch.randn(3, 24, generator=generator), torch.randn(24, generator=generator)
    got = Norm.of(weight, 1e-5)(x, torch.empty(3, 1), torch.full_like(x, torch.nan))
    want = F.rms_norm(x.double(), (24,), weight.double(), 1e-5)
    assert torch.allclose(got.double(), want, rtol=1e-6, atol=1e-12)
