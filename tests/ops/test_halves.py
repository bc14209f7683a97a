"""Linear maps on a processor without 16-bit arithmetic give what they give elsewhere, more exactly."""

import pytest
import torch
import torch.nn.functional as F

from omnimamba_cli.ops import halves
from tests.numerics import assert_close


@pytest.fixture(params=[False, True], ids=["without", "with"])
def _processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(halves, "processor_multiplies", lambda dtype: request.param)


@pytest.mark.usefixtures("_processor")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("length", [1, halves.LEAST_ROWS - 1, halves.LEAST_ROWS])
def test_the_product_is_the_exact_one_rounded(dtype: torch.dtype, length: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*s, generator=generator).to(dtype) for s in ((1, length, 48), (40, 48), (40,)))
    layer = halves.Linear(48, 40)
    layer.load_state_dict({"weight": weight, "bias": bias}, assign=True)
    with torch.no_grad():
        got = layer(x)
    assert got.dtype == dtype
    exact = F.linear(x.double(), weight.double(), bias.double())
    assert_close("product", exact, got, {torch.bfloat16: 5e-3, torch.float16: 6e-4, torch.float32: 1e-6}[dtype])


@pytest.mark.usefixtures("_processor")
def test_a_batch_gets_what_each_row_gets_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(halves, "processor_multiplies", lambda dtype: False)
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*s, generator=generator).half() for s in ((halves.LEAST_ROWS - 1, 1, 64), (16, 64)))
    with torch.no_grad():
        together = halves.linear(x, weight)
        assert torch.equal(together, torch.cat([halves.linear(row[None], weight) for row in x]))


def test_gradients_are_the_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(halves, "processor_multiplies", lambda dtype: False)
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*s, generator=generator).bfloat16() for s in ((1, 64, 8), (4, 8)))
    weight.requires_grad_()
    halves.linear(x, weight).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad[0], weight.grad[1])


@pytest.mark.parametrize(
    ("capability", "dtype", "want"),
    [
        ("AVX2", torch.bfloat16, False),
        ("AVX2", torch.float16, False),
        ("AVX512", torch.bfloat16, True),
        ("AVX512", torch.float16, False),
        ("SVE256", torch.float16, True),
    ],
)
def test_what_a_processor_multiplies(
    monkeypatch: pytest.MonkeyPatch, capability: str, dtype: torch.dtype, want: bool
) -> None:
    """One with instructions for bfloat16 alone, such as AMD's Zen 4: float16 is widened for many rows."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: False)
    assert halves.processor_multiplies.__wrapped__(dtype) is want
