"""One forward contract: whole, in pieces, step by step, in any batch, dtype and cut, for both tasks."""

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from omnimamba_cli.config import ModelConfig, Task
from omnimamba_cli.errors import InputError
from omnimamba_cli.model.omnimamba import OmniMamba
from tests.cases import small
from tests.numerics import assert_close

EXACT = 2e-6  # float32 sums in another order
both_tasks = pytest.mark.parametrize("task", ["mmu", "t2i"])


@pytest.fixture(scope="module")
def model() -> OmniMamba:
    return small.model()


@pytest.fixture(autouse=True)
def _no_gradients(request: pytest.FixtureRequest) -> object:
    with torch.set_grad_enabled("train" in request.node.name):
        yield


def embedded(length: int, rows: int = 3, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(rows, length, small.CONFIG.backbone.d_model, generator=rng)


def in_pieces(model: OmniMamba, x: Tensor, task: Task, sizes: list[int]) -> Tensor:
    state = model.new_state(len(x))
    return torch.cat([model(piece, task, state) for piece in x.split(sizes, 1)], 1)


@both_tasks
@pytest.mark.parametrize("prefill", [1, 2, 7, 20])
def test_prefill_and_steps_equal_one_forward(model: OmniMamba, task: Task, prefill: int) -> None:
    x = embedded(31)
    got = in_pieces(model, x, task, [prefill, *[1] * (31 - prefill)])
    assert_close("hidden", model(x, task), got, EXACT)


@both_tasks
@pytest.mark.parametrize("seed", range(6))
def test_any_cut_equals_one_forward(model: OmniMamba, task: Task, seed: int) -> None:
    rng, sizes = random.Random(seed), []
    while sum(sizes) < 37:
        sizes.append(min(rng.choice((1, 2, 3, 6, 7, 8, 13)), 37 - sum(sizes)))
    x = embedded(37, seed=seed)
    assert_close("hidden", model(x, task), in_pieces(model, x, task, sizes), EXACT)


@both_tasks
def test_a_row_of_a_batch_equals_the_row_alone(model: OmniMamba, task: Task) -> None:
    x = embedded(23, rows=4)
    whole = in_pieces(model, x, task, [20, 1, 1, 1])
    for row in range(4):
        assert_close(f"row {row}", in_pieces(model, x[row : row + 1], task, [20, 1, 1, 1])[0], whole[row], EXACT)


@both_tasks
@pytest.mark.parametrize("chunk_size", [1, 5, 256])
def test_the_chunk_changes_speed_not_results(model: OmniMamba, task: Task, chunk_size: int) -> None:
    config = replace(small.CONFIG, backbone=replace(small.CONFIG.backbone, chunk_size=chunk_size))
    other = OmniMamba(config).eval()
    other.load_state_dict(model.state_dict())
    x = embedded(33)
    assert_close("hidden", model(x, task), other(x, task), EXACT)


def test_the_past_is_seen_and_the_future_is_not(model: OmniMamba) -> None:
    x = embedded(20, rows=1)
    changed = x.clone()
    changed[:, 12] += 1
    before, after = model(x, "mmu"), model(changed, "mmu")
    assert_close("before", before[:, :12], after[:, :12], EXACT)
    assert bool((before[:, 12:] - after[:, 12:]).norm(dim=-1).gt(1e-4).all())


def test_one_task_leaves_nothing_behind_for_the_other(model: OmniMamba) -> None:
    x = embedded(9)
    before = model(x, "mmu")
    model(embedded(9, seed=1), "t2i", model.new_state(3))
    assert torch.equal(model(x, "mmu"), before)
    assert not torch.allclose(model(x, "t2i"), before, atol=1e-2)


# state


def test_the_state_has_one_size_at_any_length(model: OmniMamba) -> None:
    c = small.CONFIG.backbone
    state = model.new_state(2)
    want = c.n_layer * 2 * 4 * ((c.d_conv - 1) * c.conv_dim + c.nheads * c.headdim * c.d_state)
    for length in (1, 30, 5):
        model(embedded(length, rows=2), "mmu", state)
        assert state.nbytes == want
        assert state.ssm.dtype == torch.float32
    assert state.position == 36


def test_selected_rows_go_on_as_they_would_have(model: OmniMamba) -> None:
    x = embedded(12, rows=4)
    state = model.new_state(4)
    model(x[:, :8], "mmu", state)
    rows = torch.tensor([3, 1, 3])
    chosen = state.select(rows)
    want = model(x[:, 8:], "mmu", state)[rows]
    assert_close("hidden", want, model(x[rows, 8:], "mmu", chosen), EXACT)


@pytest.mark.parametrize("how", ["clone", "select"])
def test_a_copied_state_is_independent(model: OmniMamba, how: str) -> None:
    state = model.new_state(2)
    model(embedded(5, rows=2), "t2i", state)
    kept = [state.conv.clone(), state.ssm.clone()]
    copy = state.clone() if how == "clone" else state.select(torch.arange(2))
    model(embedded(3, rows=2), "t2i", copy)
    assert torch.equal(state.conv, kept[0])
    assert torch.equal(state.ssm, kept[1])
    assert (state.position, copy.position) == (5, 8)


# positions


@both_tasks
def test_the_last_position_of_the_table_can_be_used(model: OmniMamba, task: Task) -> None:
    limit = len(model.positions(task))
    assert model(embedded(limit), task).isfinite().all()


@both_tasks
@pytest.mark.parametrize("before", [0, 20])
def test_past_the_table_nothing_runs(
    model: OmniMamba, task: Task, before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = len(model.positions(task))
    state = model.new_state(3)
    if before:
        model(embedded(before), task, state)
    kept = state.clone()
    monkeypatch.setattr(model.layers[0], "forward", lambda *_: pytest.fail("a layer ran"))
    with pytest.raises(InputError, match=f"{limit + 1} tokens .* limit of {limit} for {task}"):
        model(embedded(limit + 1 - before), task, state)
    assert state.position == before
    assert torch.equal(state.ssm, kept.ssm)


# dtypes


@both_tasks
def test_bfloat16_is_close_to_float32(model: OmniMamba, task: Task) -> None:
    x = embedded(30)
    narrow = small.model().bfloat16()
    state = narrow.new_state(3)
    assert (state.conv.dtype, state.ssm.dtype) == (torch.bfloat16, torch.float32)
    got = torch.cat([narrow(piece, task, state) for piece in x.bfloat16().split([20, 9, 1], 1)], 1)
    assert got.dtype == torch.bfloat16
    # 8 bits of mantissa through two layers
    assert_close("hidden", model(x, task), got, 3e-2)


def test_autocast_is_close_to_float32(model: OmniMamba) -> None:
    x = embedded(30)
    with torch.autocast("cpu", torch.bfloat16):
        got = model(x, "mmu")
    assert got.dtype == torch.bfloat16
    assert_close("hidden", model(x, "mmu"), got, 3e-2)


@both_tasks
def test_float64_goes_through(model: OmniMamba, task: Task) -> None:
    wide = small.model().double()
    x = embedded(20)
    got = wide(x.double(), task)
    assert got.dtype == torch.float64
    assert_close("hidden", model(x, task), got, EXACT)
    # the state's memory is float32 whatever the model is
    assert_close("steps", got, in_pieces(wide, x.double(), task, [15, 1, 1, 1, 1, 1]), EXACT)


def test_float16_decays_do_not_overflow() -> None:
    narrow = small.model().half()
    for layer in narrow.layers:
        layer.mixer.A_log.fill_(12.0)  # exp(12) is past float16's 65,504
        layer.mixer.dt_bias.fill_(-12.0)
    assert narrow(embedded(16).half(), "mmu").isfinite().all()


# embeddings and heads


def test_code_embeddings_are_the_same_by_entry_and_by_place(model: OmniMamba) -> None:
    rng = torch.Generator().manual_seed(0)
    entries = small.CONFIG.vq.codebook_size
    few = torch.randint(entries, (2, 4), generator=rng)
    many = torch.cat([few, torch.randint(entries, (2, entries), generator=rng)], 1)
    assert_close("embedded", model.embed_codes(few), model.embed_codes(many)[:, :4], EXACT)


def test_heads_are_tied_to_their_embeddings() -> None:
    model = small.model()
    hidden = embedded(1)[:, 0]
    for task, table in (("mmu", model.text_embedding), ("t2i", model.image_embedding)):
        before = model.logits(hidden, task)
        assert before.shape == (3, table.num_embeddings)
        table.weight[5] *= 2
        after = model.logits(hidden, task)
        assert_close("doubled", 2 * before[:, 5], after[:, 5], EXACT)
        assert torch.equal(before[:, :5], after[:, :5])


def test_a_model_without_towers_has_no_projector() -> None:
    blind = OmniMamba(replace(small.CONFIG, towers=()))
    assert not [name for name in blind.state_dict() if name.startswith("projector")]
    assert blind(embedded(4), "t2i").shape == (3, 4, 64)


def test_parameter_names_and_shapes_are_the_format() -> None:
    config: ModelConfig = replace(small.CONFIG, backbone=replace(small.CONFIG.backbone, n_layer=1))
    got = {name: tuple(t.shape) for name, t in OmniMamba(config).state_dict().items()}
    assert got == {
        "text_embedding.weight": (48, 64),
        "image_embedding.weight": (29, 64),
        "image_mlp.0.weight": (192, 64),
        "image_mlp.0.bias": (192,),
        "image_mlp.2.weight": (64, 192),
        "image_mlp.2.bias": (64,),
        "image_mlp.4.weight": (64, 64),
        "image_mlp.4.bias": (64,),
        "caption_mlp.0.weight": (64, 64),
        "caption_mlp.2.weight": (64, 64),
        "t2i_positions": (39, 64),
        "mmu_positions": (61, 64),
        "projector.0.weight": (48, 24),
        "projector.0.bias": (48,),
        "projector.2.weight": (64, 48),
        "projector.2.bias": (64,),
        "projector.4.weight": (64, 64),
        "projector.4.bias": (64,),
        "layers.0.norm.weight": (64,),
        "layers.0.mixer.in_proj.weight": (328, 64),
        "layers.0.mixer.in_proj.lora.mmu.A": (3, 64),
        "layers.0.mixer.in_proj.lora.mmu.B": (328, 3),
        "layers.0.mixer.in_proj.lora.t2i.A": (3, 64),
        "layers.0.mixer.in_proj.lora.t2i.B": (328, 3),
        "layers.0.mixer.conv1d.weight": (192, 1, 3),
        "layers.0.mixer.conv1d.bias": (192,),
        "layers.0.mixer.dt_bias": (8,),
        "layers.0.mixer.A_log": (8,),
        "layers.0.mixer.D": (8,),
        "layers.0.mixer.norm.weight": (128,),
        "layers.0.mixer.out_proj.weight": (64, 128),
        "norm_f.weight": (64,),
    }


def test_training_overfits_one_batch_in_twenty_steps() -> None:
    rng = torch.Generator().manual_seed(0)
    codes = torch.randint(29, (4, 25), generator=rng)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = OmniMamba(small.CONFIG)
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
        losses = []
        for _ in range(20):
            logits = model.logits(model(model.embed_codes(codes[:, :-1]), "t2i"), "t2i")
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), codes[:, 1:].flatten())
            losses.append(loss.item())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    assert losses[0] > 3.0
    assert losses[-1] < 0.5
