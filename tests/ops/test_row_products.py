"""Products of a few rows on a CPU: each form is the exact product, rounded as it says."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from omnimamba_cli.engine.runtime import check_quantization
from omnimamba_cli.errors import DeviceError
from omnimamba_cli.ops import packed_int8
from omnimamba_cli.ops.packed_int8 import PackedInt8
from omnimamba_cli.ops.row_products import Halves, RowProduct, Transposed, Widened, row_product
from tests.numerics import assert_close

NO_FBGEMM = packed_int8.refusal()
needs_fbgemm = pytest.mark.skipif(NO_FBGEMM is not None, reason=str(NO_FBGEMM))
O, I = 61, 72


def tensors(rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    # rows of very different sizes: none may lose to another
    x = torch.randn(rows, I, generator=rng) * torch.logspace(-3, 3, rows)[:, None]
    values = torch.randint(-127, 128, (O, I), generator=rng, dtype=torch.int8)
    return x, torch.randn(O, I, generator=rng), values, torch.rand(O, generator=rng) / 100


KINDS: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], tuple[RowProduct, Tensor]], float]] = {
    "float32": (lambda w, q, s: (Transposed(w), w), 1e-6),
    "float16": (lambda w, q, s: (Halves(w.half()), w.half()), 6e-4),
    "bfloat16": (lambda w, q, s: (Halves(w.bfloat16()), w.bfloat16()), 5e-3),
    "widened": (lambda w, q, s: (Widened(q, s), q.double() * s.double()[:, None]), 1e-6),
    "packed": (lambda w, q, s: (PackedInt8(q, s), q.double() * s.double()[:, None]), 2e-4),
}


@pytest.mark.parametrize("rows", [1, 2, 9])
@pytest.mark.parametrize("kind", [k if k != "packed" else pytest.param(k, marks=needs_fbgemm) for k in KINDS])
def test_the_product_is_the_exact_one_row_by_row(kind: str, rows: int) -> None:
    make, bound = KINDS[kind]
    x, weight, values, scale = tensors(rows)
    product, exact_weight = make(weight, values, scale)
    exact = x.double() @ exact_weight.double().t()
    out = torch.full((rows, O), torch.nan)
    with torch.inference_mode():
        product.write(x, out)
        for want, got in zip(exact, out, strict=True):
            assert_close(kind, want, got, bound)
        product.add(x, out)
    assert_close("added", 2 * exact, out, bound)


@needs_fbgemm
def test_packed_rows_are_what_they_are_alone_to_the_last_bit() -> None:
    x, _, values, scale = tensors(7)
    product = PackedInt8(values, scale)
    assert torch.equal(product(x), torch.cat([product(row[None]) for row in x]))


@needs_fbgemm
def test_packed_inputs_of_zero_give_zero_and_large_weights_do_not_saturate() -> None:
    values = torch.full((3, 4096), 127, dtype=torch.int8)
    product = PackedInt8(values, torch.ones(3))
    assert torch.equal(product(torch.zeros(2, 4096)), torch.zeros(2, 3))
    assert_close("largest", torch.full((1, 3), 4096 * 127.0), product(torch.ones(1, 4096)), 1e-6)
    assert_close("largest", torch.full((1, 3), -4096 * 127.0), product(-torch.ones(1, 4096)), 1e-6)


def test_a_module_shares_what_is_kept_turned() -> None:
    linear = nn.Linear(I, O, bias=False).requires_grad_(False)
    before = linear.weight.clone()
    product = row_product(linear)
    assert isinstance(product, Transposed)
    assert linear.weight.data_ptr() == product.weight.data_ptr()
    assert torch.equal(linear.weight, before)


def test_quantization_on_a_cpu_says_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    with pytest.raises(DeviceError, match="a CPU has no 8-bit floats"):
        check_quantization("fp8", cpu)
    with pytest.raises(DeviceError, match="'int4' is no quantization"):
        check_quantization("int4", cpu)
    monkeypatch.setattr(packed_int8, "refusal", lambda: None)
    check_quantization("int8", cpu)
    monkeypatch.setattr(packed_int8, "refusal", lambda: "this PyTorch has no FBGEMM")
    with pytest.raises(DeviceError, match="no use here: this PyTorch has no FBGEMM"):
        check_quantization("int8", cpu)


def test_a_product_that_comes_out_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PackedInt8, "__call__", lambda self, x: torch.zeros(len(x), 40))
    packed_int8.refusal.cache_clear()
    try:
        reason = packed_int8.refusal()
        assert reason is not None
        assert "FBGEMM" in reason
    finally:
        packed_int8.refusal.cache_clear()
