"""Where no gradient is wanted, the scan and the convolution with few passes against the reference in float64."""

import pytest
import torch

from omnimamba_cli import ops
from omnimamba_cli.ops import in_place, reference
from tests.numerics import assert_close
from tests.ops.test_reference import scan_inputs


@pytest.mark.parametrize("near", [1, 1 << 18])
@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("g", [1, 2])
@pytest.mark.parametrize("l", [1, 3, 38, 39, 40, 63, 78, 200])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 5e-3)]
)
def test_the_scan_is_the_references(
    monkeypatch: pytest.MonkeyPatch, l: int, g: int, carried: bool, near: int, dtype: torch.dtype, tolerance: float
) -> None:
    monkeypatch.setattr(in_place, "NEAR", near)  # 1: row by row
    t = scan_inputs(l, g, p=16, n=16)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    narrow = {k: v.to(dtype if k in "xBC" else wide) for k, v in t.items() if carried or k != "state"}
    before = {k: v.clone() for k, v in narrow.items()}
    want = reference.ssd_scan(**{k: v.double() for k, v in narrow.items()}, chunk_size=64)
    got = in_place.ssd_scan(**narrow)
    assert (got[0].dtype, got[1].dtype) == (dtype, wide)
    for name, exact, found in zip(("y", "last"), want, got, strict=True):
        assert_close(name, exact, found, tolerance)
    assert all(torch.equal(before[k], narrow[k]) for k in narrow)  # only what is its own is written over


@pytest.mark.parametrize("near", [1, 1 << 18])
@pytest.mark.parametrize("l", [1, 3, 64])
@pytest.mark.parametrize("carried", [False, True])
def test_the_convolution_is_the_references(monkeypatch: pytest.MonkeyPatch, near: int, l: int, carried: bool) -> None:
    monkeypatch.setattr(in_place, "NEAR", near)
    rng = torch.Generator().manual_seed(3)
    # a slice of something wider, as the model has it
    x, weight, bias = (torch.randn(s, generator=rng) for s in ((3, l, 40), (24, 4), (24,)))
    x = x[..., 8:32]
    history = torch.randn(3, 3, 24, generator=rng) if carried else None
    before = x.clone()
    want = reference.causal_conv(x.double(), weight.double(), bias.double(), history)
    got = in_place.causal_conv(x, weight, bias, history)
    for name, exact, found in zip(("y", "history"), want, got, strict=True):
        assert_close(name, exact.double(), found, 1e-6)
    assert torch.equal(x, before)


def test_it_runs_where_no_gradient_is_wanted_and_nothing_else_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    t = scan_inputs(5, 1, p=4, n=4)
    ran: list[str] = []
    real = in_place.ssd_scan
    monkeypatch.setattr(in_place, "ssd_scan", lambda *a, **k: ran.append("in place") or real(*a, **k))
    run = lambda: ops.ssd_scan(*(t[k] for k in "x dt A B C D".split()), chunk_size=64)  # noqa: E731
    run()
    assert ran == []
    with torch.inference_mode():
        run()
    assert ran == ["in place"]
    monkeypatch.setenv("OMNIMAMBA_KERNELS", "torch")
    with torch.inference_mode():
        run()
    assert ran == ["in place"]
