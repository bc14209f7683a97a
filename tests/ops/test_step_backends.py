"""Kernels of a decoding step against the reference: on a GPU, or interpreted without one."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from omnimamba_cli.config import SamplingConfig
from omnimamba_cli.engine.sampling import choose, guided, penalize_repetition
from omnimamba_cli.ops import reference, registry
from omnimamba_cli.ops.chips import is_large
from omnimamba_cli.ops.draw import DrawBuffers, DrawRule, advance, uniform_now
from omnimamba_cli.ops.step_plans import MixerPlan, ProductPlan, ScanPlan, batch_plan, scan_plan
from tests.numerics import assert_close

# float32: sums in another order; half precision: 11 and 8 bits of mantissa in what is multiplied
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 6e-3}
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
VECTOR = ProductPlan("vector", rows=4)
TILE = ProductPlan("tile", rows=32, columns=32, stages=2)
TILES = ProductPlan("tile", rows=32, columns=32, stages=2, splits=3)
AHEAD = ProductPlan("tile", rows=32, columns=32, stages=2, ahead=16, late=1)
AHEAD_TILES = ProductPlan("tile", rows=32, columns=32, stages=2, splits=2, ahead=32, late=0)


def normal(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng)


def narrow(weight: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Weights (r c) as one byte each with a scale for each row."""
    largest = {"int8": 127.0, "fp8": 448.0}[kind]
    scale = weight.abs().amax(1) / largest
    values = weight / scale[:, None]
    return (values.round().to(torch.int8) if kind == "int8" else values.to(torch.float8_e4m3fn)), scale


def compare_product(
    device: str,
    dtype: torch.dtype,
    b: int,
    rows: int,
    c: int,
    plan: ProductPlan,
    *,
    add: bool,
    kind: str | None = None,
    wide: bool = True,
    pdl: bool = False,
) -> None:
    """One product of few rows; `wide`: x is float32, as the residual is."""
    from omnimamba_cli.ops import triton_step

    rng = torch.Generator().manual_seed(rows + b)
    x, weight, norm = normal(rng, b, c), normal(rng, rows, c), 1 + 0.1 * normal(rng, c)
    values, scale = (weight.to(dtype), None) if kind is None else narrow(weight, kind)
    x = (3 * x).to(torch.float32 if wide else dtype)
    norm, out = norm.to(dtype), normal(rng, b, rows)
    want = out.clone().double() if add else torch.full((b, rows), torch.nan).double()
    exact = [t.double() for t in (x, norm)]
    reference.normed_product(*exact, 1e-5, values.double(), None if scale is None else scale.double(), want, add=add)
    got = (out.clone() if add else torch.full((b, rows), torch.nan)).to(device)
    moved = [t if t is None else t.to(device) for t in (x, norm, values, scale)]
    triton_step.normed_product(moved[0], moved[1], 1e-5, moved[2], moved[3], got, add=add, plan=plan, pdl=pdl)
    assert_close(f"{plan.method} {kind} b {b}", want, got.cpu(), TOLERANCE[dtype])


def compare_batch(
    device: str,
    dtype: torch.dtype,
    b: int,
    rows: int,
    c: int,
    plan: ProductPlan,
    *,
    kind: str | None = None,
    pdl: bool = False,
) -> None:
    """A product in parts, and those parts joined: what normed_product with `add` does for few rows."""
    from omnimamba_cli.ops import triton_batch

    rng = torch.Generator().manual_seed(rows + b)
    x, weight, norm = (3 * normal(rng, b, c)).to(dtype), normal(rng, rows, c), (1 + normal(rng, rows) / 9).to(dtype)
    values, scale = (weight.to(dtype), None) if kind is None else narrow(weight, kind)
    residual, squares = normal(rng, b, rows), reference.Squares(4 * normal(rng, b, 5).square(), 3, 1e-5)
    exact_squares = squares._replace(parts=squares.parts.double())
    moved_squares = squares._replace(parts=squares.parts.to(device))
    exact = torch.empty(1, b, rows, dtype=torch.float64)
    reference.product(x.double(), values.double(), None if scale is None else scale.double(), exact)
    moved = [t if t is None else t.to(device) for t in (x, values, scale)]
    for out_dtype in {torch.float32, dtype}:
        parts = torch.full((plan.splits, b, rows), torch.nan, dtype=out_dtype, device=device)
        triton_batch.product(*moved, parts, plan=plan, pdl=pdl)
        name = f"{plan.splits} parts {kind} b {b} {out_dtype}"
        tolerance = max(TOLERANCE[dtype], TOLERANCE[out_dtype])
        assert_close(name, exact[0], parts.cpu().double().sum(0), tolerance)
        want, normed = residual.double(), torch.empty(b, rows, dtype=torch.float64)
        given = parts.cpu().double()
        reference.join_norm(want, given, exact_squares, norm.double(), 1e-5, normed)
        got, out = residual.to(device), torch.full((b, rows), torch.nan, dtype=dtype, device=device)
        triton_batch.join_norm(got, parts, moved_squares, norm.to(device), 1e-5, out, pdl=pdl)
        assert_close(f"residual {name}", want, got.cpu(), 1e-5)
        assert_close(f"norm {name}", normed, out.cpu(), TOLERANCE[dtype])
    before = got.clone()
    triton_batch.join_norm(got, None, moved_squares, norm.to(device), 1e-5, out)
    assert torch.equal(before, got)
    assert_close("norm alone", normed, out.cpu(), TOLERANCE[dtype])


def compare_convolution(
    device: str,
    dtype: torch.dtype,
    b: int,
    c: int,
    plan: ProductPlan,
    *,
    first: int = 40,
    channels: int = 21,
    rest: int = 5,
    k: int = 4,
    pdl: bool = False,
) -> None:
    """A product whose middle columns go through the convolution; two steps, the second reads what the first wrote."""
    from omnimamba_cli.ops import triton_batch

    rng = torch.Generator().manual_seed(c + b)
    rows = first + channels + rest
    weight = (normal(rng, rows, c) / c**0.5).to(dtype)
    want = reference.Convolution(
        normal(rng, b, k, channels).to(dtype),
        torch.arange(b) * 3 + 5,
        normal(rng, k, channels).to(dtype),
        normal(rng, channels).to(dtype),
        first,
    )
    got = want._replace(**{name: t.to(device) for name, t in zip(want._fields, want[:4], strict=False)})
    for _ in range(2):
        x, out = normal(rng, b, c).to(dtype), torch.full((1, b, rows), torch.nan, dtype=dtype, device=device)
        exact = torch.empty(1, b, rows, dtype=torch.float64)
        reference.product(x.double(), weight.double(), None, exact, convolution=want)
        triton_batch.product(x.to(device), weight.to(device), None, out, plan=plan, convolution=got, pdl=pdl)
        assert_close(f"convolved b {b}", exact[0], out[0].cpu(), 2 * TOLERANCE[dtype])
        assert_close(f"ring b {b}", want.ring, got.ring.cpu(), TOLERANCE[dtype])
        for how in (want, got):
            how.position.add_(1)


def mixer_inputs(
    b: int, g: int, h: int, p: int, n: int, k: int, dtype: torch.dtype, state: torch.dtype
) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(b * 10 + g)
    e, c = h * p, h * p + 2 * g * n
    return {
        "proj": normal(rng, b, e + c + h),
        "ring": normal(rng, b, k, c).to(dtype),
        "ssm": normal(rng, b, h, p, n).to(state),
        "last": reference.Last(normal(rng, b, e), normal(rng, b, g * n), 0.05 * torch.rand(b, h, generator=rng)),
        "position": torch.arange(b) * 3 + 5,
        "conv": normal(rng, k, c).to(dtype),
        "bias": normal(rng, c).to(dtype),
        "dt_bias": normal(rng, h) - 4,  # small steps, where log(1 + u) is hard
        "A_log": normal(rng, h),
        "D": normal(rng, h),
        "out": torch.full((b, e), torch.nan, dtype=dtype),
    }


def copied(given: dict[str, Any], device: str) -> dict[str, Any]:
    """Copies on a device."""

    def copy(t: Any) -> Any:
        return reference.Last(*(copy(part) for part in t)) if isinstance(t, reference.Last) else t.clone().to(device)

    return {name: copy(t) for name, t in given.items()}


def compare_mixer(
    device: str,
    dtype: torch.dtype,
    b: int,
    g: int,
    *,
    h: int = 4,
    p: int = 8,
    n: int = 16,
    k: int = 4,
    rows: int = 8,
    state: torch.dtype = torch.float32,
    batch: bool = False,
    loud: bool = False,
    pdl: bool = False,
) -> None:
    """Some steps one after the other, so that what was written is read; `batch`: as one of many rows."""
    from omnimamba_cli.ops import triton_step

    given = mixer_inputs(b, g, h, p, n, k, dtype, state)
    for t in given["last"]:
        t.fill_(torch.nan)  # nobody looks at it at the first turn: the state holds that token
    if loud:  # outputs above what float16 holds, before their norm
        given["proj"][:, : h * p] *= 50
        given["D"] *= 300
    if batch:
        given["proj"] = given["proj"].to(dtype)
        given["last"] = given["last"]._replace(x=given["last"].x.to(dtype), B=given["last"].B.to(dtype))
        given["norm"] = (1 + normal(torch.Generator().manual_seed(b), h * p) / 9).to(dtype)
        given["squares"] = torch.full((b, h * MixerPlan(rows).programs(p)), torch.nan)
        given["ring"].fill_(torch.nan)  # nobody looks at it: the rows are convolved already
    want, got = copied(given, "cpu"), copied(given, device)
    # a narrow state is rounded twice, once here and once there
    tolerance = max(TOLERANCE[dtype], TOLERANCE[state])
    for turn in range(3):
        for tensors in (want, got):
            tensors["position"] += 1
            tensors["proj"] += turn % 2
        how = {"groups": g, "pending": turn % 2 == 1, "convolved": batch}
        reference.mixer_step(**want, **how)
        triton_step.mixer_step(**got, **how, plan=MixerPlan(rows=rows), pdl=pdl)
        if batch:
            assert_close("squares", want["squares"].sum(1), got["squares"].sum(1).cpu(), tolerance)
        for name in ("out", "ssm") if batch else ("out", "ssm", "ring"):
            assert_close(f"{name} b {b} g {g} turn {turn}", want[name], got[name].cpu(), tolerance)
        for name, x, y in zip(reference.Last._fields, want["last"], got["last"], strict=True):
            assert_close(f"last {name}", x, y.cpu(), TOLERANCE[dtype])
    assert got["out"].dtype == dtype


RULES = [
    DrawRule(0.0),
    DrawRule(1.0),
    DrawRule(0.7, min_p=0.05),
    DrawRule(1.3, penalty=1.7),
    DrawRule(0.0, penalty=5.0),
    DrawRule(1.0, guidance=3.0),
    DrawRule(0.0, guidance=1.5),
]


def draw_buffers(rule: DrawRule, b: int, v: int, d: int, *, steps: int = 4) -> DrawBuffers:
    rng = torch.Generator().manual_seed(b)
    rows = 2 * b if rule.guided else b
    seen = (torch.rand(b, v, generator=rng) < 0.3).to(torch.int8) if rule.penalty != 1 else None
    return DrawBuffers(
        logits=3 * normal(rng, rows, v),
        seen=seen,
        uniform=torch.rand(steps, b, generator=rng, dtype=torch.float64),
        tokens=torch.full((steps, b), -1),
        count=torch.arange(b) % steps,
        position=torch.arange(b).repeat(rows // b) + 2,
        residual=torch.full((rows, d), torch.nan),
    )


def moved(buffers: DrawBuffers, device: str) -> DrawBuffers:
    return DrawBuffers(*(None if t is None else t.clone().to(device) for t in vars(buffers).values()))


def choice(t: DrawBuffers, rule: DrawRule) -> Tensor:
    """What engine/sampling.py draws."""
    scores = guided(t.logits, rule.guidance) if rule.guided else t.logits.clone()
    scores[:, rule.limit :] = -torch.inf
    if t.seen is not None:
        scores = penalize_repetition(scores, t.seen.bool(), rule.penalty)
    config = SamplingConfig(temperature=rule.temperature, min_p=rule.min_p)
    return choose(scores, config, uniform_now(t) if rule.temperature > 0 else None)


def compare_draw(device: str, rule: DrawRule, b: int, *, v: int = 70, limit: int = 61, d: int = 24) -> None:
    from omnimamba_cli.ops import triton_draw

    rule = DrawRule(**{**vars(rule), "limit": limit})
    rng = torch.Generator().manual_seed(0)
    table, places = normal(rng, v, d), normal(rng, 5, d)  # the rows run past the last place
    want = draw_buffers(rule, b, v, d)
    got = moved(want, device)
    for turn in range(3):
        advance(want, table, places, choice(want, rule))
        triton_draw.draw(got, table.to(device), places.to(device), rule)
        for name, tensor in vars(want).items():
            other = getattr(got, name)
            assert other is None or torch.equal(tensor, other.cpu()), f"{name} at turn {turn} under {rule}"
    given = choice(want, rule)
    advance(want, table, places, given)
    triton_draw.draw(got, table.to(device), places.to(device), rule, given.to(device))
    assert torch.equal(want.residual, got.residual.cpu())


def compare_prefill(
    device: str,
    dtype: torch.dtype,
    l: int,
    g: int,
    *,
    b: int = 2,
    h: int = 4,
    p: int = 8,
    n: int = 16,
    k: int = 4,
    plan: ScanPlan | None = None,
    state: torch.dtype = torch.float32,
) -> None:
    """Each kernel of a prefix against the reference on the same inputs, outputs filled with NaN before."""
    from omnimamba_cli.ops import triton_prefill

    given = mixer_inputs(b, g, h, p, n, k, dtype, state)
    rng = torch.Generator().manual_seed(l)
    e, c = h * p, h * p + 2 * g * n
    residual, y, norm = normal(rng, b, l, e), normal(rng, b, l, e).to(dtype), (1 + normal(rng, e) / 9).to(dtype)
    wide = (residual + y.float()).double()
    got_residual = residual.to(device)
    normed = triton_prefill.add_norm(got_residual, y.to(device), norm.to(device), 1e-5, dtype)
    tolerance = TOLERANCE[dtype]
    assert_close("residual", wide, got_residual.cpu(), 1e-6)
    assert_close("add_norm", reference.rms_norm(wide, norm.double(), 1e-5), normed.cpu(), tolerance)

    zxBCdt = normal(rng, b, l, e + c + h).to(dtype)
    z, inputs, raw = zxBCdt.double().split([e, c, h], dim=-1)
    want, _ = reference.causal_conv(inputs, given["conv"].double().mT, given["bias"].double())
    want_dt = torch.nn.functional.softplus(raw + given["dt_bias"].double())
    ring = torch.full_like(given["ring"], torch.nan).to(device)
    moved = [given[name].to(device) for name in ("conv", "bias", "dt_bias")]
    xBC, dt = triton_prefill.conv_dt(zxBCdt.to(device), *moved, ring)
    assert_close("convolution", want, xBC.cpu(), tolerance)
    assert_close("dt", want_dt, dt.cpu(), 1e-5)
    for back in range(1, min(k - 1, l) + 1):
        assert torch.equal(ring[:, (l - back) % k].cpu(), zxBCdt[:, l - back, e : e + c])

    exact = xBC.cpu().double()
    x, B, C = exact[..., :e].unflatten(-1, (h, p)), *exact[..., e:].unflatten(-1, (2, g, n)).unbind(2)
    A, D = -given["A_log"].double().exp(), given["D"].double()
    want_y, last = reference.ssd_scan(x, dt.cpu().double(), A, B, C, D, chunk_size=32)
    ssm = torch.full_like(given["ssm"], torch.nan).to(device)
    out = triton_prefill.scan(xBC, dt, given["A_log"].to(device), given["D"].to(device), ssm, groups=g, plan=plan)
    assert_close("scan", want_y.flatten(2), out.cpu(), 2 * tolerance)
    assert_close("state", last, ssm.cpu(), 2 * max(tolerance, TOLERANCE[state]))
    want = reference.gated_rms_norm(out.cpu().double(), z, norm.double(), 1e-5)
    assert_close(
        "gate_norm", want, triton_prefill.gate_norm(out, zxBCdt.to(device), norm.to(device), 1e-5).cpu(), tolerance
    )


def compare_cast(device: str, given: torch.dtype, dtype: torch.dtype) -> None:
    from omnimamba_cli.ops import triton_prefill

    x = (20 * normal(torch.Generator().manual_seed(0), 70, 61)).to(given).to(device)
    assert torch.equal(triton_prefill.cast(x, dtype), x.to(dtype))
    assert triton_prefill.cast(x, given) is x


# on a GPU


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize("given", [torch.bfloat16, torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_casts_on_a_gpu(given: torch.dtype, dtype: torch.dtype) -> None:
    if given == torch.float8_e4m3fn and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this chip has no 8-bit floats")
    compare_cast("cuda", given, dtype)


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize("pdl", [False, True], ids=["apart", "chained"])
@pytest.mark.parametrize("b", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_vector_products_on_a_gpu(dtype: torch.dtype, b: int, pdl: bool) -> None:
    pdl = pdl and torch.cuda.get_device_capability()[0] >= 9
    for rows, c, add in ((8512, 2048, False), (2048, 4096, True), (61, 72, False)):
        compare_product("cuda", dtype, b, rows, c, VECTOR, add=add, wide=not add, pdl=pdl)


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize("pdl", [False, True], ids=["apart", "chained"])
@pytest.mark.parametrize("b", [3, 17, 70])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_products_of_many_rows_on_a_gpu(dtype: torch.dtype, b: int, pdl: bool) -> None:
    pdl = pdl and torch.cuda.get_device_capability()[0] >= 9
    plans = ((8512, 2048, TILE), (2048, 4096, TILES), (61, 72, TILES), (61, 72, AHEAD), (2048, 4096, AHEAD_TILES))
    for rows, c, plan in plans:
        compare_batch("cuda", dtype, b, rows, c, plan, pdl=pdl)
    compare_convolution("cuda", dtype, b, 72, TILE, pdl=pdl)
    compare_convolution("cuda", dtype, b, 72, AHEAD, pdl=pdl)
    for large in (True, False):
        if large and not is_large(torch.device("cuda")):
            continue
        shipped = batch_plan(b, dtype, dtype, large=large)
        assert shipped is not None
        compare_mixer("cuda", dtype, b, 1, h=3, p=64, n=128, rows=shipped.mixer.rows, state=torch.float16, batch=True)
        compare_mixer("cuda", dtype, b, 2, p=12, rows=shipped.mixer.rows, batch=True)
        if shipped.into.method == "tile":
            compare_batch("cuda", dtype, b, 8512, 2048, shipped.into, pdl=pdl)
            compare_convolution("cuda", dtype, b, 2048, shipped.into, first=4096, channels=4352, rest=64, pdl=pdl)
            compare_batch("cuda", dtype, b, 2048, 4096, shipped.out, pdl=pdl)


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("b", [1, 2, 17])
def test_narrow_weights_on_a_gpu(b: int, kind: str) -> None:
    if kind == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this chip has no 8-bit floats")
    for rows, c, add in ((8512, 2048, False), (2048, 4096, True)):
        if b > 2:
            compare_batch("cuda", torch.bfloat16, b, rows, c, TILES if add else TILE, kind=kind)
        else:
            compare_product("cuda", torch.bfloat16, b, rows, c, VECTOR, add=add, kind=kind, wide=not add)


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize("state", [torch.float32, torch.float16])
@pytest.mark.parametrize("g", [1, 2])
@pytest.mark.parametrize("b", [1, 3, 17])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_mixer_step_on_a_gpu(dtype: torch.dtype, b: int, g: int, state: torch.dtype) -> None:
    compare_mixer("cuda", dtype, b, g, state=state)
    compare_mixer("cuda", dtype, b, g, h=64, p=64, n=128, rows=16, state=state)
    compare_mixer("cuda", dtype, b, g, h=64, p=64, n=128, rows=32, state=state, batch=True)
    compare_mixer("cuda", dtype, b, g, rows=8, state=state, batch=True, loud=True)


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_draws_on_a_gpu(rule: DrawRule) -> None:
    compare_draw("cuda", rule, 3)
    compare_draw("cuda", rule, 2, v=50_288, limit=50_277, d=2048)


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize("l", [1, 2, 3, 63, 64, 65, 200, 760])
@pytest.mark.parametrize("g", [1, 2])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_prefill_kernels_on_a_gpu(dtype: torch.dtype, g: int, l: int) -> None:
    compare_prefill("cuda", dtype, l, g)
    compare_prefill("cuda", dtype, l, g, h=4, p=64, n=128, state=torch.float16)
    compare_prefill("cuda", dtype, l, g, h=4, p=64, n=128, plan=scan_plan(2, l, dtype, large=False))


# without one

INTERPRETED = """
import torch
from omnimamba_cli.ops.step_plans import ScanPlan
from tests.ops.test_step_backends import AHEAD, AHEAD_TILES, RULES, TILE, TILES, VECTOR, compare_batch
from tests.ops.test_step_backends import compare_cast, compare_convolution, compare_draw, compare_mixer, compare_prefill
from tests.ops.test_step_backends import compare_product
f32, f16 = torch.float32, torch.float16
for b, rows, c in ((1, 13, 24), (3, 10, 40)):
    compare_product("cpu", f32, b, rows, c, VECTOR, add=b == 3)
    compare_product("cpu", f16, b, rows, c, VECTOR, add=b != 3, wide=False)
    compare_product("cpu", f32, b, rows, c, VECTOR, add=False, kind="int8")
tiles = ((3, 37, 40, TILE), (17, 33, 100, TILES), (70, 20, 72, TILES), (66, 40, 130, AHEAD), (16, 64, 200, AHEAD_TILES))
for b, rows, c, plan in tiles:
    compare_batch("cpu", f32, b, rows, c, plan)
    compare_batch("cpu", f16, b, rows, c, plan)
    compare_batch("cpu", f32, b, rows, c, plan, kind="int8")
for b, dtype in ((3, f32), (17, f16), (70, f32)):
    compare_convolution("cpu", dtype, b, 40, TILE)
compare_convolution("cpu", f32, 3, 70, AHEAD)
compare_convolution("cpu", f32, 3, 16, AHEAD)
compare_mixer("cpu", f32, 3, 2, batch=True)
compare_mixer("cpu", f16, 5, 1, p=12, rows=8, batch=True)
compare_mixer("cpu", f32, 3, 2, p=12, rows=64, batch=True)
compare_mixer("cpu", f16, 5, 1, batch=True, loud=True)
for b, g in ((1, 1), (3, 2), (17, 1)):
    compare_mixer("cpu", f32, b, g)
compare_mixer("cpu", f32, 2, 2, p=12, n=10, k=3)
compare_mixer("cpu", f16, 1, 1, state=f16)
compare_cast("cpu", f32, f16)
compare_cast("cpu", torch.int8, f32)
compare_prefill("cpu", f32, 1, 1)
compare_prefill("cpu", f32, 2, 2, b=1)
compare_prefill("cpu", f32, 70, 2, plan=ScanPlan(chunk=16, warps=4, segments=3))
compare_prefill("cpu", f16, 50, 1, plan=ScanPlan(chunk=16, warps=4, segments=8), state=f16)
for rule in RULES:
    compare_draw("cpu", rule, 3)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is a Linux package")
def test_step_kernels_interpreted_on_the_cpu() -> None:
    pytest.importorskip("triton")
    # a process of its own: Triton reads the variable when it is imported
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", INTERPRETED], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_on_a_cpu_a_step_is_plain_pytorch_and_the_report_says_why() -> None:
    kernels = registry.step_kernels(torch.empty(0))
    assert kernels.name == "torch"
    assert not kernels.pdl
    rows = [
        r for r in registry.report(torch.device("cpu")) if r.op in ("normed_product", "mixer_step", "draw", "prefill")
    ]
    assert {r.op for r in rows if r.backend == "torch" and r.chosen} == {
        "normed_product",
        "mixer_step",
        "draw",
        "prefill",
    }
    assert all("CUDA" in r.reason for r in rows if r.backend == "triton")


def test_insisting_on_step_kernels_without_a_gpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(registry.ENVIRONMENT, "triton")
    with pytest.raises(registry.DeviceError, match="needs a CUDA device"):
        registry.step_kernels(torch.empty(0))
