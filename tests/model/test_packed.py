"""16-bit weights on a CPU: packed linear maps give what float32 products of the same weights give."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from omnimamba_cli.engine.decode import decode_text
from omnimamba_cli.model.lora import merged
from omnimamba_cli.model.omnimamba import OmniMamba
from omnimamba_cli.model.packed import PackedLinear, linear_weights, pack_for_task, pack_linears
from omnimamba_cli.ops import half_linear, registry
from tests.cases import small
from tests.numerics import assert_close, relative_error

CPU = torch.device("cpu")
REFUSAL = half_linear.refusal(CPU, torch.bfloat16)
needs_fbgemm = pytest.mark.skipif(REFUSAL is not None, reason=f"16-bit weights are not packed here: {REFUSAL}")


def weights(rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    return (0.05 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))).to(dtype)


@needs_fbgemm
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "columns"), [(5, 7), (64, 48), (133, 65)])
@pytest.mark.parametrize("tokens", [1, 3, 70])
def test_a_packed_map_is_the_float32_product(dtype: torch.dtype, rows: int, columns: int, tokens: int) -> None:
    w, bias = weights(rows, columns, dtype), torch.linspace(-1, 1, rows).to(dtype)
    x = torch.randn(2, tokens, columns, generator=torch.Generator().manual_seed(1))
    exact = nn.functional.linear(x.double(), w.double(), bias.double())
    # bfloat16 weights below 6e-5 lose bits in float16, nothing else does
    assert_close("float32 input", exact, half_linear.linear(x, half_linear.pack(w, bias)), 2e-5)
    narrow = half_linear.linear(x.to(dtype), half_linear.pack(w, bias))
    assert narrow.dtype == dtype
    assert_close("16-bit input", exact, narrow, 8e-3 if dtype == torch.bfloat16 else 1e-3)


@needs_fbgemm
def test_a_weight_that_float16_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="float16 holds up to 65504"):
        half_linear.pack(torch.full((2, 2), 1e5, dtype=torch.bfloat16))


def half_model() -> OmniMamba:
    return small.model().to(torch.bfloat16).eval()


@needs_fbgemm
@torch.inference_mode()
def test_a_packed_model_is_nearer_to_float32_than_an_unpacked_one() -> None:
    plain = merged(half_model(), "mmu")
    packed = pack_for_task(merged(half_model(), "mmu"), "mmu")
    wide = copy.deepcopy(plain).float()
    x = torch.randn(2, 20, small.CONFIG.backbone.d_model, generator=torch.Generator().manual_seed(3))
    scores = {
        name: model.logits(model(x.to(model.dtype), "mmu"), "mmu").float()
        for name, model in {"plain": plain, "packed": packed, "wide": wide}.items()
    }
    error = relative_error(scores["wide"], scores["packed"])
    assert error <= relative_error(scores["wide"], scores["plain"])
    assert error < 2e-2  # of bfloat16 activations between the maps


@needs_fbgemm
def test_a_packed_model_decodes_and_keeps_no_second_weight() -> None:
    model = pack_for_task(merged(half_model(), "mmu"), "mmu")
    maps = [m for m in model.layers.modules() if isinstance(m, nn.Linear | PackedLinear)]
    assert maps
    assert all(isinstance(m, PackedLinear) for m in maps)
    prefix = torch.zeros(1, 4, small.CONFIG.backbone.d_model, dtype=torch.bfloat16)
    config = replace(small.CONFIG.caption_sampling, temperature=0.0)
    assert len(list(decode_text(model, prefix, config, steps=5, seeds=[0]))) >= 1
    counts = [sum(n for n, _ in linear_weights(m.layers)) for m in (model, merged(half_model(), "mmu"))]
    assert counts[0] == counts[1]


@needs_fbgemm
def test_a_packed_map_refuses_another_task() -> None:
    model = pack_for_task(merged(half_model(), "mmu"), "mmu")
    with pytest.raises(ValueError, match="packed for 'mmu'"):
        model(torch.zeros(1, 2, small.CONFIG.backbone.d_model, dtype=torch.bfloat16), "t2i")


def test_float32_is_left_as_it_is() -> None:
    model = merged(small.model(), "mmu")
    assert pack_for_task(model, "mmu") is model
    assert not any(isinstance(m, PackedLinear) for m in model.modules())


def test_plain_torch_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIMAMBA_KERNELS", "torch")
    layer = nn.Sequential(nn.Linear(4, 4)).to(torch.bfloat16)
    assert type(pack_linears(layer)[0]) is nn.Linear
    (chosen,) = [c for c in registry.report(CPU) if c.op == "linear" and c.chosen]
    assert chosen.backend == "torch"


@needs_fbgemm
def test_the_report_says_that_16_bits_are_packed() -> None:
    (chosen,) = [c for c in registry.report(CPU) if c.op == "linear" and c.chosen]
    assert (chosen.backend, chosen.reason) == ("fbgemm", "16-bit weights, float32 sums")
