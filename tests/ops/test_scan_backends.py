"""Fast scans against the reference, forward and gradients: on the GPU where there is one, interpreted where not."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from omnimamba_cli.ops import mamba_ssm, reference, registry
from omnimamba_cli.ops.train_plans import SCAN_GRADIENT_SMALL, ScanGradientPlan, ScanKernel
from tests.numerics import assert_close
from tests.ops.test_reference import scan_inputs

SIZES = {"l": [1, 3, 63, 64, 65, 200], "g": [1, 2]}


def outputs(scan: object, tensors: dict[str, Tensor], carried: bool) -> dict[str, Tensor]:
    """y, the last state and every gradient."""
    leaves = {k: v.detach().clone().requires_grad_() for k, v in tensors.items() if carried or k != "state"}
    y, last = scan(**leaves)
    rng = torch.Generator().manual_seed(7)
    weights = [torch.randn(t.shape, generator=rng).to(t) for t in (y, last)]
    ((y * weights[0]).sum() + (last * weights[1]).sum()).backward()
    return {"y": y.detach(), "last": last.detach(), **{f"d{k}": v.grad for k, v in leaves.items()}}


def compare(backend: object, device: str, dtype: torch.dtype, tolerance: float, l: int, g: int, carried: bool) -> None:
    t = scan_inputs(l, g, p=16, n=16)
    narrow = {k: v.to(device, dtype if k in "xBC" else torch.float32) for k, v in t.items()}
    # the reference sees the rounded inputs, so that only the arithmetic is compared
    exact = {k: v.double() for k, v in narrow.items()}
    want = outputs(lambda **k: reference.ssd_scan(**k, chunk_size=64), exact, carried)
    got = outputs(backend, narrow, carried)
    for name, tensor in want.items():
        assert_close(name, tensor, got[name], tolerance)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("g", SIZES["g"])
@pytest.mark.parametrize("l", SIZES["l"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 1.5e-2)])
def test_triton_scan_on_a_gpu(l: int, g: int, carried: bool, dtype: torch.dtype, tolerance: float) -> None:
    from omnimamba_cli.ops import triton_scan

    compare(triton_scan.ssd_scan, "cuda", dtype, tolerance, l, g, carried)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("carried", [False, True])
def test_mamba_ssm_scan_on_a_gpu(carried: bool) -> None:
    why = mamba_ssm.refusal(torch.empty(0, device="cuda"))
    if why:
        pytest.skip(why)
    scan = lambda **k: mamba_ssm.ssd_scan(**k, chunk_size=64)  # noqa: E731
    compare(scan, "cuda", torch.bfloat16, 1.5e-2, 200, 1, carried)


@contextmanager
def dirty_memory() -> Iterator[None]:
    """Meanwhile fresh floating-point tensors are full of NaN: what is read before it is written shows."""
    empty, empty_like = torch.empty, torch.empty_like

    def dirty(tensor: Tensor) -> Tensor:
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

    torch.empty = lambda *a, **k: dirty(empty(*a, **k))  # type: ignore[assignment,method-assign]
    torch.empty_like = lambda *a, **k: dirty(empty_like(*a, **k))  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.empty, torch.empty_like = empty, empty_like  # type: ignore[method-assign]


def compare_cut(device: str, plan: ScanGradientPlan, dtype: torch.dtype = torch.float32) -> None:
    """The gradients under another plan."""
    from omnimamba_cli.ops import triton_scan, triton_scan_backward

    shipped = triton_scan_backward.scan_gradient_plan
    triton_scan_backward.scan_gradient_plan = lambda *_, **__: plan
    try:
        compare(triton_scan.ssd_scan, device, dtype, 1e-4 if dtype == torch.float32 else 2e-2, 41, 1, True)
    finally:
        triton_scan_backward.scan_gradient_plan = shipped


UNEVEN = ScanGradientPlan(16, ScanKernel(4, 1), ScanKernel(4, 1, heads=1), ScanKernel(4, 1, heads=3))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_heads_in_uneven_parts_on_a_gpu() -> None:
    compare_cut("cuda", UNEVEN)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_plan_of_smaller_chips_on_a_gpu(dtype: torch.dtype) -> None:
    compare_cut("cuda", SCAN_GRADIENT_SMALL, dtype)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("n", [64, 128])
def test_gradients_at_the_models_sizes_are_the_same_every_time(n: int) -> None:
    from omnimamba_cli.ops import triton_scan

    t = scan_inputs(329, 1, h=64, p=64, n=n)
    narrow = {k: v.to("cuda", torch.bfloat16 if k in "xBC" else torch.float32) for k, v in t.items()}
    exact = {k: v.double() for k, v in narrow.items()}
    want = outputs(lambda **k: reference.ssd_scan(**k, chunk_size=64), exact, carried=True)
    first, second = (outputs(triton_scan.ssd_scan, narrow, carried=True) for _ in range(2))
    for name, tensor in want.items():
        assert_close(name, tensor, first[name], 1.5e-2)
        assert torch.equal(first[name], second[name]), name


INTERPRETED = """
import torch
from tests.ops.test_scan_backends import UNEVEN, compare, compare_cut, dirty_memory
from omnimamba_cli.ops import triton_scan
with dirty_memory():
    for l, g, carried in ((1, 1, True), (33, 2, False), (70, 1, True)):
        compare(triton_scan.ssd_scan, "cpu", torch.float32, 1e-4, l, g, carried)
    compare(triton_scan.ssd_scan, "cpu", torch.float16, 5e-3, 70, 2, True)
    compare_cut("cpu", UNEVEN)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is a Linux package")
def test_triton_scan_interpreted_on_the_cpu() -> None:
    pytest.importorskip("triton")
    # a process of its own: Triton reads the variable when it is imported
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", INTERPRETED], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_registry_falls_back_on_a_cpu_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(registry.ENVIRONMENT, raising=False)
    rows = {r.backend: r for r in registry.report(torch.device("cpu")) if r.op == "ssd_scan"}
    assert rows["torch"].chosen
    assert "CUDA" in rows["triton"].reason


def test_insisting_on_a_backend_that_cannot_run_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(registry.ENVIRONMENT, "triton")
    t = {k: v.float() for k, v in scan_inputs(4, 1).items()}
    with pytest.raises(registry.DeviceError, match="needs a CUDA device"):
        registry.ssd_scan(**t, chunk_size=4)


def test_an_unknown_backend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(registry.ENVIRONMENT, "fast")
    with pytest.raises(registry.DeviceError, match="OMNIMAMBA_KERNELS=fast"):
        registry.requested()


def test_kernels_whose_packages_are_broken_are_refused_with_what_they_said(tmp_path: Path) -> None:
    for package in ("triton", "mamba_ssm"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(f"raise OSError('lib{package}.so: cannot open it')")
    code = (
        "from omnimamba_cli.ops import mamba_ssm, registry;"
        "print(registry._triton()[2], registry._step_modules()[1], mamba_ssm._load()[1], sep='\\n')"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    triton, step, scan = said.stdout.splitlines()
    assert triton == step == "Triton cannot be imported (libtriton.so: cannot open it)"
    assert scan.startswith("mamba-ssm cannot be imported (libmamba_ssm.so: cannot open it)")
