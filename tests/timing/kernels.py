"""Each kernel of a decoding step over its candidate plans, at the 1.3B model's sizes and on all its layers' weights."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from omnimamba_cli.model.omnimamba import OmniMamba
from omnimamba_cli.model.quantized import quantize_rows
from omnimamba_cli.model.stepping import Product, Stepper
from omnimamba_cli.ops import registry
from omnimamba_cli.ops.draw import DrawBuffers, DrawRule
from omnimamba_cli.ops.reference import Squares
from omnimamba_cli.ops.step_plans import MixerPlan, ProductPlan, ScanPlan
from tests.timing.machine import Log, compile_together, recorded_us

EPS = 1e-5


def vector(rows: int, warps: int) -> ProductPlan:
    return ProductPlan("vector", rows=rows, warps=warps)


def tile(rows: int, columns: int, warps: int, stages: int, splits: int = 1) -> ProductPlan:
    return ProductPlan("tile", rows=rows, columns=columns, warps=warps, stages=stages, splits=splits)


Candidates = list[tuple[str, int, str, list[ProductPlan]]]  # which product, batch, weights, plans
VECTORS: Candidates = [
    ("in_proj", 1, "bf16", [vector(4, 4), vector(8, 4), vector(8, 8), vector(16, 8)]),
    ("out_proj", 1, "bf16", [vector(2, 4), vector(4, 4), vector(4, 8), vector(8, 8)]),
    ("in_proj", 1, "int8", [vector(8, 4), vector(16, 4), vector(16, 8)]),
    ("out_proj", 1, "int8", [vector(4, 4), vector(8, 8), vector(16, 8)]),
    ("in_proj", 1, "fp8", [vector(8, 4), vector(16, 8)]),
    ("in_proj", 2, "bf16", [vector(4, 4), vector(8, 8)]),
    ("in_proj", 4, "bf16", [vector(4, 4)]),
]
IN = [tile(64, 64, 4, 5), tile(64, 64, 4, 8), tile(64, 128, 4, 4), tile(64, 128, 4, 6), tile(64, 256, 4, 3),
      tile(64, 128, 8, 4), tile(32, 128, 4, 4), tile(16, 256, 4, 3), tile(128, 64, 8, 5)]  # fmt: skip
OUT = [tile(64, 128, 4, 3, 4), tile(64, 64, 4, 6, 4), tile(64, 128, 4, 4, 8), tile(64, 128, 4, 4, 4),
       tile(64, 64, 4, 5, 8), tile(32, 128, 4, 4, 4), tile(64, 256, 4, 3, 4), tile(128, 64, 8, 5, 8)]  # fmt: skip
BATCHES: Candidates = [
    ("in_proj", 16, "bf16", IN),
    ("out_proj", 16, "bf16", OUT),
    ("in_proj", 64, "bf16", IN),
    ("out_proj", 64, "bf16", OUT),
    ("in_proj", 16, "int8", [tile(64, 128, 4, 3), tile(64, 64, 4, 6), tile(128, 64, 8, 5), tile(32, 128, 4, 5)]),
    ("out_proj", 16, "int8", [tile(64, 128, 4, 4, 4), tile(64, 64, 4, 6, 4), tile(32, 128, 4, 4, 4)]),
]


def layers_of(stepper: Stepper, which: str, kind: str) -> list[Product]:
    """One product of every layer, narrowed if kind says so."""
    every: list[Product] = [layer.into if which == "in_proj" else layer.out for layer in stepper.layers]
    if kind == "bf16":
        return every
    narrowed = [quantize_rows(p.weight, kind) for p in every]  # type: ignore[arg-type]  # int8 or fp8
    return [Product(p.norm, *n) for p, n in zip(every, narrowed, strict=True)]


Work = Callable[[ProductPlan, bool], None]  # under a plan, kernels chained or not


def candidates(log: Log, name: str, plans: list[ProductPlan], work: Work, layers: list[Product]) -> None:
    """Each plan with chained kernels, the first also with kernels apart; time a layer."""
    c = layers[0].weight.shape[1]
    kinds = [(plan, pdl) for plan in plans for pdl in ((True, False) if plan is plans[0] else (True,))]
    compile_together([lambda k=k: work(*k) for k in kinds])
    for plan, pdl in kinds:
        cut = f"{plan.rows}x{plan.columns or c} w{plan.warps} s{plan.stages} k{plan.splits}"
        try:
            each = recorded_us(lambda k=(plan, pdl): work(*k)) / len(layers)
            log.result(f"{name} {plan.method} {cut}", each, layers[0].weight.nbytes, pdl=pdl)
        except Exception as error:  # any: a candidate may be too large for the chip
            log.line(f"{name} {cut} pdl {pdl}: {type(error).__name__} {str(error)[:150]}")


def vectors(log: Log, stepper: Stepper, which: str, batch: int, kind: str, plans: list[ProductPlan]) -> None:
    """One product of few rows of all layers, its norm inside."""
    module = registry.step_kernels(stepper.head.weight).products
    assert module is not None, "no Triton here"
    layers = layers_of(stepper, which, kind)
    rows, c = layers[0].weight.shape
    add = which == "out_proj"
    x = torch.randn(batch, c, device="cuda", dtype=torch.bfloat16 if add else torch.float32)
    out = torch.zeros(batch, rows, device="cuda")

    def work(plan: ProductPlan, pdl: bool) -> None:
        for p in layers:
            module.normed_product(x, p.norm, EPS, p.weight, p.scale, out, add=add, plan=plan, pdl=pdl)

    candidates(log, f"{which} b {batch} {kind}", plans, work, layers)


def batches(log: Log, stepper: Stepper, which: str, batch: int, kind: str, plans: list[ProductPlan]) -> None:
    """One product of many rows of all layers; and what joins out_proj's parts; and the library's product."""
    module = registry.step_kernels(stepper.head.weight).batches
    assert module is not None, "no Triton here"
    layers = layers_of(stepper, which, kind)
    rows, c = layers[0].weight.shape
    x = torch.randn(batch, c, device="cuda", dtype=torch.bfloat16)
    narrow = torch.zeros(1, batch, rows, device="cuda", dtype=torch.bfloat16)
    wide = torch.zeros(max(p.splits for p in plans), batch, rows, device="cuda")

    def work(plan: ProductPlan, pdl: bool) -> None:
        out = narrow if plan.splits == 1 else wide[: plan.splits]
        for p in layers:
            module.product(x, p.weight, p.scale, out, plan=plan, pdl=pdl)

    candidates(log, f"{which} b {batch} {kind}", plans, work, layers)
    if kind != "bf16":
        return

    def library() -> None:
        for p in layers:
            torch.mm(x, p.weight.mT, out=narrow[0])

    log.result(f"{which} b {batch} {kind} library", recorded_us(library) / len(layers), layers[0].weight.nbytes)
    if which == "out_proj":
        residual, normed = torch.zeros(batch, rows, device="cuda"), narrow[0].clone()
        norm, squares = stepper.layers[0].into.norm, Squares(torch.ones(batch, 512, device="cuda"), c, EPS)
        for splits in {p.splits for p in plans}:

            def join(splits: int = splits) -> None:
                for _ in layers:
                    module.join_norm(residual, wide[:splits], squares, norm, EPS, normed, pdl=True)

            log.result(f"join_norm b {batch} {splits} parts", recorded_us(join) / len(layers), splits * wide[0].nbytes)


MIXERS = {
    1: [MixerPlan(8, 4), MixerPlan(16, 4), MixerPlan(32, 4)],
    16: [MixerPlan(16, 4), MixerPlan(32, 4), MixerPlan(16, 2), MixerPlan(32, 8), MixerPlan(8, 2)],
    64: [MixerPlan(16, 4), MixerPlan(32, 4), MixerPlan(64, 8), MixerPlan(16, 2), MixerPlan(32, 8), MixerPlan(8, 2)],
}


def mixers(log: Log, stepper: Stepper, batch: int, state: torch.dtype) -> None:
    """What stands between two products, over as many layers as make the state larger than the cache."""
    module = registry.step_kernels(stepper.head.weight).products
    assert module is not None, "no Triton here"
    c, layers = stepper.config, stepper.layers[:: max(1, batch // 4)]
    m = stepper.memory(batch, 16, state)

    def run(plan: MixerPlan, pdl: bool) -> None:
        for i, layer in enumerate(layers):
            w = (layer.conv, layer.bias, layer.dt_bias, layer.A_log, layer.D)
            more = {}
            if m.batch is not None:
                squares = m.residual.new_zeros(batch, c.nheads * plan.programs(c.headdim))
                more = {"norm": layer.out.norm, "squares": squares, "convolved": True}
            module.mixer_step(
                m.proj,
                m.ring[i],
                m.ssm[i],
                m.last.layer(i),
                m.position,
                *w,
                m.gated,
                groups=c.ngroups,
                plan=plan,
                pdl=pdl,
                **more,
            )

    nbytes = 1.5 * m.ssm[0].nbytes + m.proj.nbytes + m.ring[0].nbytes + m.gated.nbytes
    kinds = [(plan, pdl) for plan in MIXERS[batch] for pdl in ((True, False) if batch == 1 else (True,))]
    compile_together([lambda k=k: run(*k) for k in kinds])
    for plan, pdl in kinds:
        each = recorded_us(lambda k=(plan, pdl): run(*k)) / len(layers)
        log.result(f"mixer b {batch} {state} rows {plan.rows} w{plan.warps}", each, nbytes, pdl=pdl)


SCANS = [ScanPlan(64, 4), ScanPlan(64, 8), ScanPlan(32, 4), ScanPlan(64, 4, segments=8), ScanPlan(64, 4, segments=1)]


def scans(log: Log, stepper: Stepper) -> None:
    """The scan of a prefix, and the other kernels of a layer beside it, for short and long ones."""
    from omnimamba_cli.ops import triton_prefill

    c, layer = stepper.config, stepper.layers[0]
    for length in (16_000, 760):
        zxBCdt = torch.randn(1, length, c.d_in_proj, device="cuda", dtype=torch.bfloat16)
        residual, branch = (torch.randn(1, length, c.d_model, device="cuda", dtype=t) for t in (None, torch.bfloat16))
        y = torch.randn(1, length, c.d_inner, device="cuda", dtype=torch.bfloat16)
        m = stepper.memory(1, 16, torch.float32)
        xBC, dt = triton_prefill.conv_dt(zxBCdt, layer.conv, layer.bias, layer.dt_bias, m.ring[0])
        works = {}
        for plan in SCANS if length == 16_000 else SCANS[:1]:
            name = f"scan {length}: chunk {plan.chunk} w{plan.warps} segments {plan.segments}"
            works[name] = partial(triton_prefill.scan, xBC, dt, layer.A_log, layer.D, m.ssm[0], groups=1, plan=plan)
        compile_together(list(works.values()))
        for name, scan in works.items():
            log.result(name, recorded_us(scan), xBC.nbytes + dt.nbytes + y.nbytes)
        others = {
            "add_norm": partial(triton_prefill.add_norm, residual, branch, layer.into.norm, EPS, torch.bfloat16),
            "conv_dt": partial(triton_prefill.conv_dt, zxBCdt, layer.conv, layer.bias, layer.dt_bias, m.ring[0]),
            "gate_norm": partial(triton_prefill.gate_norm, y, zxBCdt, layer.out.norm, EPS),
        }
        moved = {"add_norm": 3 * residual.nbytes, "conv_dt": 2 * xBC.nbytes + dt.nbytes, "gate_norm": 3 * y.nbytes}
        for name, work in others.items():
            log.result(f"{name} {length}", recorded_us(work), moved[name])


def heads_and_draws(log: Log, stepper: Stepper, model: OmniMamba) -> None:
    """The text head and the end of a step."""
    kernels = registry.step_kernels(stepper.head.weight)
    assert kernels.products is not None, "no Triton here"
    p, v = stepper.head, len(stepper.head.weight)
    x, logits = torch.randn(1, p.weight.shape[1], device="cuda"), torch.zeros(1, v, device="cuda")
    for plan in (vector(8, 4), vector(16, 8), vector(4, 4)):

        def head(plan: ProductPlan = plan) -> None:
            assert kernels.products is not None
            kernels.products.normed_product(x, p.norm, EPS, p.weight, p.scale, logits, add=False, plan=plan)

        log.result(f"head b 1 {plan.rows} w{plan.warps}", recorded_us(head), p.weight.nbytes)
    for name, rule, b, width in (
        ("greedy text", DrawRule(0.0, limit=50_277), 1, v),
        ("drawn text", DrawRule(1.0, limit=50_277), 1, v),
        ("drawn codes, guided", DrawRule(1.0, guidance=3.0, limit=16_384), 16, 16_384),
    ):
        buffers = _draw_buffers(rule, b, width, x.shape[1])

        def draw(buffers: DrawBuffers = buffers, rule: DrawRule = rule) -> None:
            kernels.draw(buffers, model.text_embedding.weight, model.mmu_positions, rule)

        log.result(f"draw b {b}: {name}", recorded_us(draw), buffers.logits.nbytes)


def _draw_buffers(rule: DrawRule, b: int, v: int, d: int) -> DrawBuffers:
    rows = 2 * b if rule.guided else b

    def empty(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.zeros(*shape, device="cuda", dtype=dtype)

    return DrawBuffers(
        logits=torch.randn(rows, v, device="cuda"),
        seen=None,
        uniform=torch.rand(64, b, device="cuda", dtype=torch.float64),
        tokens=empty(64, b),
        count=empty(b),
        position=empty(rows),
        residual=empty(rows, d, dtype=torch.float32),
    )
