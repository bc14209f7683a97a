"""Fused convolution and norms against the reference, forward and gradients: on a GPU, or interpreted without one."""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from omnimamba_cli.ops import reference, registry
from tests.numerics import assert_close

LENGTHS = [1, 2, 3, 33, 70]
# float32: sums in another order; bfloat16: 8 bits of mantissa in what comes out
PRECISIONS = [(torch.float32, 1e-5), (torch.bfloat16, 4e-3)]
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def normal(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def outputs(op: object, leaves: dict[str, Tensor], cut: bool) -> dict[str, Tensor]:
    """What an op returns and the gradient of each input; with `cut`, its wide inputs are slices of wider tensors."""
    leaves = {name: t.detach().clone().requires_grad_() for name, t in leaves.items()}
    given = {name: t[..., 5:-3] if cut and name in "xyz" else t for name, t in leaves.items()}
    results = op(**given)
    results = results if isinstance(results, tuple) else (results,)
    rng = torch.Generator().manual_seed(7)
    # gradients that every dtype holds exactly
    weights = [torch.randn(r.shape, generator=rng).bfloat16().to(r) for r in results]
    total = sum((r * w).double().sum() for r, w in zip(results, weights, strict=True))
    total.backward()  # type: ignore[union-attr]  # at least one result
    grads = {f"d{name}": t.grad for name, t in leaves.items()}
    return {f"out {i}": r.detach() for i, r in enumerate(results)} | grads


def compare(name: str, inputs: dict[str, Tensor], device: str, dtype: torch.dtype, tolerance: float, cut: bool) -> None:
    """The fused op against the reference in float64 on the same, rounded, inputs."""
    from omnimamba_cli.ops import triton_fused

    settings = {} if name == "causal_conv" else {"eps": 1e-5}
    if name == "rms_norm":
        settings["dtype"] = dtype
    # weights stay float32, as parameters do under autocast
    narrow = {k: v.to(device, dtype if k in ("x", "y", "z", "history") else torch.float32) for k, v in inputs.items()}
    exact = {k: v.double() for k, v in narrow.items()}
    wide = settings | ({"dtype": torch.float64} if name == "rms_norm" else {})
    want = outputs(lambda **k: getattr(reference, name)(**k, **wide), exact, cut)
    got = outputs(lambda **k: getattr(triton_fused, name)(**k, **settings), narrow, cut)
    for key, tensor in want.items():
        assert_close(f"{name} {key}", tensor, got[key], tolerance)
        assert got[key].dtype == (dtype if key.startswith("out") else narrow[key[1:]].dtype), key


def compare_conv(
    device: str, dtype: torch.dtype, tolerance: float, l: int, *, carried: bool, cut: bool, k: int = 4, c: int = 72
) -> None:
    rng = torch.Generator().manual_seed(l)
    width = c + 8 if cut else c
    inputs = {"x": normal(rng, 2, l, width), "weight": normal(rng, c, k), "bias": normal(rng, c)}
    if carried:
        inputs["history"] = normal(rng, 2, k - 1, c)
    compare("causal_conv", inputs, device, dtype, tolerance, cut)


def compare_norms(device: str, dtype: torch.dtype, tolerance: float, l: int, *, cut: bool, c: int = 72) -> None:
    rng = torch.Generator().manual_seed(l)
    width = c + 8 if cut else c
    weight = 1 + 0.1 * normal(rng, c)
    compare("rms_norm", {"x": normal(rng, 2, l, width), "weight": weight}, device, dtype, tolerance, cut)
    gated = {"y": normal(rng, 2, l, width), "z": normal(rng, 2, l, width), "weight": weight}
    compare("gated_rms_norm", gated, device, dtype, tolerance, cut)


def compare_loss(device: str, dtype: torch.dtype, tolerance: float, v: int) -> None:
    """The loss and its gradient; one row is ignored, one is sure of the right answer and one of a wrong one."""
    from omnimamba_cli.ops import triton_loss

    rng = torch.Generator().manual_seed(v)
    logits = (3 * normal(rng, 7, v)).to(dtype)
    targets = torch.randint(v, (7,), generator=rng)
    logits[3, targets[3]] = 60
    logits[4, (targets[4] + 1) % v] = 60
    targets[2] = -100
    found = []
    for loss, given in ((reference.summed_cross_entropy, logits.float()), (triton_loss.summed_cross_entropy, logits)):
        leaf = given.detach().clone().to(device).requires_grad_()
        value = loss(leaf, targets.to(device), -100)
        (value / 7).backward()
        found.append((value.detach(), leaf.grad))
    assert found[1][0].dtype == torch.float32
    assert found[1][1].dtype == dtype
    assert_close("loss", found[0][0], found[1][0], 1e-5)
    assert_close("dlogits", found[0][1], found[1][1], tolerance)
    assert not found[1][1][2].any()


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize("v", [5, 2048, 50288])
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_cross_entropy_on_a_gpu(v: int, dtype: torch.dtype, tolerance: float) -> None:
    compare_loss("cuda", dtype, tolerance, v)


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "strided"])
@pytest.mark.parametrize("carried", [False, True], ids=["fresh", "carried"])
@pytest.mark.parametrize("l", LENGTHS)
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_convolution_on_a_gpu(l: int, carried: bool, cut: bool, dtype: torch.dtype, tolerance: float) -> None:
    compare_conv("cuda", dtype, tolerance, l, carried=carried, cut=cut)
    compare_conv("cuda", dtype, tolerance, l, carried=carried, cut=cut, k=2, c=130)


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "strided"])
@pytest.mark.parametrize("l", LENGTHS)
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_norms_on_a_gpu(l: int, cut: bool, dtype: torch.dtype, tolerance: float) -> None:
    compare_norms("cuda", dtype, tolerance, l, cut=cut)
    compare_norms("cuda", dtype, tolerance, l, cut=cut, c=768)


@pytest.mark.gpu
@cuda
def test_more_rows_than_programs_on_a_gpu() -> None:
    # the backward pass takes several rows a program from 2,048 on
    compare_norms("cuda", torch.float32, 1e-5, 1300, cut=False)


@pytest.mark.gpu
@cuda
def test_the_registry_takes_the_fused_kernels_on_a_gpu() -> None:
    rows = {r.op: r for r in registry.report(torch.device("cuda")) if r.backend == "triton"}
    assert all(rows[op].chosen for op in ("causal_conv", "rms_norm", "gated_rms_norm"))


@pytest.mark.gpu
@cuda
def test_more_than_four_taps_go_to_the_reference() -> None:
    rng = torch.Generator().manual_seed(0)
    x, weight, bias = (normal(rng, *s).float().cuda() for s in ((2, 9, 6), (6, 5), (6,)))
    want, _ = reference.causal_conv(x, weight, bias)
    assert_close("y", want, registry.causal_conv(x, weight, bias)[0], 1e-6)


INTERPRETED = """
import torch
from tests.ops.test_fused_backends import LENGTHS, compare_conv, compare_loss, compare_norms
for i, l in enumerate(LENGTHS):
    for carried in (False, True):
        compare_conv("cpu", torch.float32, 1e-5, l, carried=carried, cut=(i + carried) % 2 == 1)
    compare_norms("cpu", torch.float32, 1e-5, l, cut=i % 2 == 0)
for k in (1, 2, 3):
    compare_conv("cpu", torch.float32, 1e-5, 3, carried=k > 1, cut=True, k=k, c=16)
for v in (5, 2048, 5001):
    compare_loss("cpu", torch.float32, 1e-5, v)
compare_loss("cpu", torch.float16, 1e-3, 2100)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is a Linux package")
def test_fused_kernels_interpreted_on_the_cpu() -> None:
    pytest.importorskip("triton")
    # a process of its own: Triton reads the variable when it is imported
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", INTERPRETED], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_on_a_cpu_the_reference_runs() -> None:
    rows = [r for r in registry.report(torch.device("cpu")) if r.op in ("causal_conv", "rms_norm", "gated_rms_norm")]
    assert {r.op for r in rows if r.backend == "torch" and r.chosen} == {"causal_conv", "rms_norm", "gated_rms_norm"}
    assert all("CUDA" in r.reason for r in rows if r.backend == "triton")
