"""ops/reference.py against a float64 recurrence, written one step at a time."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from omnimamba_cli.ops import reference
from tests.numerics import assert_close

LENGTHS = [1, 3, 63, 64, 65, 200]


def scan_inputs(l: int, g: int, *, b: int = 2, h: int = 4, p: int = 8, n: int = 16) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(l * 10 + g)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    return {
        "x": normal(b, l, h, p),
        "dt": F.softplus(normal(b, l, h)),
        "A": -normal(h).exp(),
        "B": normal(b, l, g, n),
        "C": normal(b, l, g, n),
        "D": normal(h),
        "state": normal(b, h, p, n),
    }


def recurrence(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """h(t) = exp(dt A) h(t-1) + dt B x; y = C h + D x, in float64."""
    r = x.shape[2] // B.shape[2]
    ys = []
    for t in range(x.shape[1]):
        Bt, Ct = B[:, t].repeat_interleave(r, 1), C[:, t].repeat_interleave(r, 1)
        decay = torch.exp(dt[:, t] * A)[..., None, None]
        state = decay * state + (dt[:, t, :, None] * x[:, t])[..., None] * Bt[:, :, None]
        ys.append((state * Ct[:, :, None]).sum(-1) + D[:, None] * x[:, t])
    return torch.stack(ys, 1), state


@pytest.mark.parametrize("l", LENGTHS)
@pytest.mark.parametrize("g", [1, 2])
@pytest.mark.parametrize("chunk_size", [1, 16, 64, 256])
def test_scan_equals_the_recurrence(l: int, g: int, chunk_size: int) -> None:
    t = scan_inputs(l, g)
    y, state = reference.ssd_scan(**t, chunk_size=chunk_size)
    want_y, want_state = recurrence(**t)
    assert_close("y", want_y, y, 1e-10)
    assert_close("state", want_state, state, 1e-10)


@pytest.mark.parametrize("g", [1, 2])
def test_gradients_equal_those_of_the_recurrence(g: int) -> None:
    t = scan_inputs(37, g)
    grads = []
    for scan in (recurrence, lambda **k: reference.ssd_scan(**k, chunk_size=16)):
        leaves = {k: v.clone().requires_grad_() for k, v in t.items()}
        y, state = scan(**leaves)
        (y.square().sum() + state.sin().sum()).backward()
        grads.append({k: v.grad for k, v in leaves.items()})
    for name, want in grads[0].items():
        assert_close(f"d{name}", want, grads[1][name], 1e-10)


def test_without_a_state_the_scan_starts_from_zeros() -> None:
    t = scan_inputs(20, 1)
    zeros = {**t, "state": torch.zeros_like(t["state"])}
    want, _ = reference.ssd_scan(**zeros, chunk_size=8)
    del t["state"]
    got, _ = reference.ssd_scan(**t, chunk_size=8)
    assert torch.equal(want, got)


@pytest.mark.parametrize("g", [1, 2, 4])
def test_steps_equal_the_scan(g: int) -> None:
    t = scan_inputs(9, g)
    want, last = reference.ssd_scan(**t, chunk_size=4)
    state = t.pop("state").clone()
    for i in range(9):
        y = reference.ssd_step(state, t["x"][:, i], t["dt"][:, i], t["A"], t["B"][:, i], t["C"][:, i], t["D"])
        assert_close(f"y {i}", want[:, i], y, 1e-10)
    assert_close("state", last, state, 1e-10)


def test_long_decays_do_not_overflow() -> None:
    # without the mask before exp, the upper triangle is exp(+2000)
    t = {k: v.float() for k, v in scan_inputs(64, 1).items()}
    t["A"] = torch.full_like(t["A"], -100.0)
    y, state = reference.ssd_scan(**t, chunk_size=64)
    want, _ = recurrence(**{k: v.double() for k, v in t.items()})
    assert torch.isfinite(state).all()
    assert_close("y", want, y, 1e-5)


@pytest.mark.parametrize("l", [1, 2, 5, 64])
@pytest.mark.parametrize("k", [2, 4])
def test_convolution_equals_torchs_and_continues(l: int, k: int) -> None:
    rng = torch.Generator().manual_seed(k)
    x, weight, bias = (torch.randn(*s, generator=rng, dtype=torch.float64) for s in ((2, l, 6), (6, k), (6,)))
    want = F.silu(F.conv1d(F.pad(x.mT, (k - 1, 0)), weight[:, None], bias, groups=6)).mT
    whole, history = reference.causal_conv(x, weight, bias)
    assert_close("whole", want, whole, 1e-12)
    got, carried = [], None
    for piece in x.split([1] * l, 1):
        y, carried = reference.causal_conv(piece, weight, bias, carried)
        got.append(y)
    assert_close("steps", want, torch.cat(got, 1), 1e-12)
    assert torch.equal(history, carried)


def test_gate_comes_before_the_norm() -> None:
    rng = torch.Generator().manual_seed(0)
    y, z = (torch.randn(3, 16, generator=rng, dtype=torch.float64) for _ in range(2))
    weight = torch.rand(16, generator=rng, dtype=torch.float64)
    gated = y * z * torch.sigmoid(z)
    want = gated / (gated.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    assert_close("norm", want, reference.gated_rms_norm(y, z, weight, 1e-5), 1e-12)
