"""Every shipped plan fits the shared memory of its chips: kernels are compiled for them, without a GPU."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from omnimamba_cli.ops import chips, reference, registry
from omnimamba_cli.ops.draw import DrawBuffers, DrawRule
from omnimamba_cli.ops.packing import Packing
from omnimamba_cli.ops.step_plans import batch_plan, mixer_plan, scan_plan, vector_plan

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is a Linux package")
# compute capability: bytes of shared memory of a program, from NVIDIA's CUDA programming guide
ROOM = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
TENSOR_MEMORY = 512  # columns, which chips from 10.0 on have
H, P, N, K = 64, 64, 128, 4  # the 1.3B model's
D, E, C = 2048, H * P, H * P + 2 * N
F16, F32 = torch.float16, torch.float32


@contextmanager
def compiled_for(capability: int) -> Iterator[dict[str, int]]:
    """Kernels that are launched within are compiled for a GPU of the capability and not run: bytes of each by name."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import JITFunction

    found: dict[str, int] = {}
    chip = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", capability, 32),
        get_current_device=lambda: capability,  # what is compiled is kept by device
        get_current_stream=lambda _: 0,
    )
    driver, run = triton.runtime.driver, JITFunction.run
    before = dict(vars(driver))

    def compile_only(self, *args, grid, warmup, **kwargs):  # type: ignore[no-untyped-def]  # Triton's
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        found[self.fn.__name__] = max(kernel.metadata.shared, found.get(self.fn.__name__, 0))
        assert getattr(kernel.metadata, "tmem_size", 0) <= TENSOR_MEMORY, self.fn.__name__
        return kernel

    driver.set_active(chip)
    JITFunction.run = compile_only
    try:
        yield found
    finally:
        JITFunction.run = run
        vars(driver).update(before)


def empty(*shape: int, dtype: torch.dtype = F16) -> Tensor:
    return torch.empty(*shape, dtype=dtype)


def last(b: int) -> reference.Last:
    return reference.Last(empty(b, E), empty(b, N), empty(b, H, dtype=F32))


def step_of_many_rows(b: int, weights: torch.dtype, *, large: bool, pdl: bool) -> None:
    from omnimamba_cli.ops import triton_batch, triton_step

    plan = batch_plan(b, weights, F16, large=large)
    assert plan is not None

    def weight(rows: int, columns: int) -> tuple[Tensor, Tensor | None]:
        return empty(rows, columns, dtype=weights), empty(rows, dtype=F32) if weights == torch.int8 else None

    position = torch.zeros(b, dtype=torch.int64)
    convolution = reference.Convolution(empty(b, K, C), position, empty(K, C), empty(C), E)
    width = E + C + H
    how = {"plan": plan.into, "pdl": pdl}
    triton_batch.product(empty(b, D), *weight(width, D), empty(1, b, width), convolution=convolution, **how)
    parts = empty(plan.out.splits, b, D, dtype=F32)
    triton_batch.product(empty(b, E), *weight(D, E), parts, plan=plan.out, pdl=pdl)
    triton_batch.product(empty(b, D), *weight(16_384, D), empty(1, b, 16_384, dtype=F32), plan=plan.head, pdl=pdl)
    squares = reference.Squares(empty(b, H * plan.mixer.programs(P), dtype=F32), E, 1e-5)
    triton_batch.join_norm(empty(b, D, dtype=F32), parts, squares, empty(D), 1e-5, empty(b, D), pdl=pdl)
    state, scalars = empty(b, H, P, N), [empty(H, dtype=F32)] * 3
    triton_step.mixer_step(
        empty(b, width), convolution.ring, state, last(b), position, empty(K, C), empty(C), *scalars, empty(b, E),
        groups=1, pending=True, plan=plan.mixer, norm=empty(E), squares=squares.parts, convolved=True, pdl=pdl,
    )  # fmt: skip


def step_of_few_rows(b: int, *, pdl: bool) -> None:
    from omnimamba_cli.ops import triton_draw, triton_step

    width, x = E + C + H, empty(b, D, dtype=F32)
    for rows, columns, add in ((width, D, False), (D, E, True)):
        out = empty(b, rows, dtype=F32)
        triton_step.normed_product(
            empty(b, columns, dtype=F32), empty(columns), 1e-5, empty(rows, columns), None, out, add=add,
            plan=vector_plan(b, columns, F16), pdl=pdl,
        )  # fmt: skip
    position = torch.zeros(b, dtype=torch.int64)
    ring, state, scalars = empty(b, K, C, dtype=F32), empty(b, H, P, N, dtype=F32), [empty(H, dtype=F32)] * 3
    triton_step.mixer_step(
        empty(b, width, dtype=F32), ring, state, last(b), position, empty(K, C), empty(C), *scalars,
        empty(b, E, dtype=F32), groups=1, pending=True, plan=mixer_plan(b), pdl=pdl,
    )  # fmt: skip
    for v, temperature in ((16_384, 1.0), (50_288, 0.0)):
        tokens, uniform = torch.zeros(8, b, dtype=torch.int64), torch.zeros(8, b, dtype=torch.float64)
        buffers = DrawBuffers(empty(b, v, dtype=F32), None, uniform, tokens, position, position, x)
        triton_draw.draw(buffers, empty(v, D), empty(300, D), DrawRule(temperature, limit=v - 11))


def prefix(dtype: torch.dtype, p: int, n: int, *, large: bool) -> None:
    from omnimamba_cli.ops import triton_prefill

    h, l = 8, 300
    e, c, scalars = h * p, h * p + 2 * n, [empty(h, dtype=F32)] * 2
    residual, zxBCdt = empty(1, l, D, dtype=F32), empty(1, l, e + c + h, dtype=dtype)
    triton_prefill.add_norm(residual, empty(1, l, D, dtype=dtype), empty(D, dtype=dtype), 1e-5, dtype)
    weights = empty(K, c, dtype=dtype), empty(c, dtype=dtype), scalars[0]
    xBC, dt = triton_prefill.conv_dt(zxBCdt, *weights, empty(1, K, c, dtype=dtype))
    plan = scan_plan(1, l, dtype, large=large)
    y = triton_prefill.scan(xBC, dt, *scalars, empty(1, h, p, n, dtype=F32), groups=1, plan=plan)
    triton_prefill.gate_norm(y, zxBCdt, empty(e, dtype=dtype), 1e-5)


def training_scan(dtype: torch.dtype, p: int, n: int) -> None:
    from omnimamba_cli.ops import triton_scan

    b, l, h = 2, 130, 16
    x, B, C_ = (torch.empty(b, l, *s, dtype=dtype, requires_grad=True) for s in ((h, p), (1, n), (1, n)))
    dt, A, D_ = (torch.ones(*s, requires_grad=True) for s in ((b, l, h), (h,), (h,)))
    y, last = triton_scan.ssd_scan(x, dt, A, B, C_, D_)
    (y.float().sum() + last.sum()).backward()


def training_block() -> None:
    """Every kernel of a block of both tasks, forward and backward, and the loss."""
    from omnimamba_cli.ops.triton_block import BlockSettings, block
    from omnimamba_cli.ops.triton_lora import Dropout, Pairs
    from omnimamba_cli.ops.triton_loss import summed_cross_entropy

    rank, width, count = 8, E + C + H, 75
    packing, pairs = Packing.of([(1, 5), (1, 70)]), Pairs(rank, 5)
    settings = BlockSettings(1, N, 1e-5, torch.bfloat16, packing, pairs, 2.0, Dropout(0.1, 1))
    shapes = (
        (count, D), (D,), (width, D), (2 * rank, D), (width, 2 * rank), (C, K), (C,), (H,), (H,), (H,), (E,), (D, E),
    )  # fmt: skip
    block(*(torch.empty(s, requires_grad=True) for s in shapes), settings).sum().backward()
    logits = torch.empty(9, 50_288, dtype=torch.bfloat16, requires_grad=True)
    summed_cross_entropy(logits, torch.zeros(9, dtype=torch.int64), -1).backward()


@pytest.mark.parametrize("capability", [89, *(pytest.param(c, marks=pytest.mark.slow) for c in (80, 90, 100, 120))])
def test_every_plan_fits_its_chips(capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    step = pytest.importorskip("omnimamba_cli.ops.triton_step")
    large, pdl = ROOM[capability] >= chips.LARGE, capability >= 90 and step.HAS_PDL
    cpu = torch.device("cpu")
    monkeypatch.setattr(chips, "is_large", lambda _: large)
    with compiled_for(capability) as found:
        for module in (
            pytest.importorskip(f"omnimamba_cli.ops.{m}") for m in ("triton_scan_backward", "triton_prefill")
        ):
            monkeypatch.setattr(module, "is_large", lambda _: large)
        step_of_few_rows(2, pdl=pdl)
        for b in (16, 32, 64):
            step_of_many_rows(b, F16, large=large, pdl=pdl)
        if pdl:
            step_of_many_rows(32, F16, large=large, pdl=False)  # a Triton without it, or OMNIMAMBA_PDL=0
        step_of_many_rows(32, torch.int8, large=large, pdl=pdl)
        for dtype in (F16, F32):
            for p, n in ((P, N), (64, 256)):
                if p * n <= chips.largest_state(cpu, dtype):
                    prefix(dtype, p, n, large=large)
                    training_scan(dtype, p, n)
        training_block()
    assert {
        "_product",
        "_vector_product",
        "_mixer_step",
        "_draw",
        "_segment_outputs",
        "_conv_backward",
        "_backward",
    } <= set(found)
    assert {name: size for name, size in found.items() if size > ROOM[capability]} == {}


def test_a_state_that_fits_no_program_is_refused_where_it_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chips, "is_large", lambda _: False)
    x = torch.empty(1, 1, 1, 64)
    assert "64 x 256 is larger than the 8192 values" in str(registry._scan_refusal(x, 256))
    assert "larger" not in str(registry._scan_refusal(x.half(), 256))
    assert "larger" not in str(registry._scan_refusal(x, 128))


@pytest.mark.parametrize(
    ("capability", "hip", "want"),
    [((7, 5), None, "this GPU has 7.5"), ((8, 0), None, None), ((12, 0), None, None), ((9, 0), "6.4", "AMD")],
)
def test_gpus_that_triton_does_not_know_are_refused(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], hip: str | None, want: str | None
) -> None:
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    chips.refusal.cache_clear()
    found = chips.refusal(torch.device("cuda", 0))
    chips.refusal.cache_clear()
    assert found is None if want is None else want in str(found)
