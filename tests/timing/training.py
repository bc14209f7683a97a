"""Times stage 2's training kernels on a GPU at the 1.3B model's sizes, each over its candidate plans:

    python -m tests.timing.training [--only PART[,PART...]] [--rows N] [--json FILE]
    python -m tests.timing.training --profile [--activations kept|again] [--rows-t2i N] [--rows-mmu N]

Parts: check, scan, scan-gradient, conv, norms, lora, products, block, all in this order by default. One that fails is a
line; the others go on. The plans in ops/train_plans.py are chosen by what this prints. --profile prints the kernels of
whole steps instead, with activations kept and computed again.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from omnimamba_cli.engine.bench_stage2 import TOGETHER, Stage2, Stage2Bench, machine_of
from omnimamba_cli.engine.runtime import pick_device
from omnimamba_cli.model.mamba2 import Block, Share
from omnimamba_cli.ops import triton_conv, triton_fused, triton_lora, triton_residual, triton_scan, triton_scan_backward
from omnimamba_cli.ops.packing import Packing
from omnimamba_cli.ops.train_plans import (
    SCAN_GRADIENT,
    RowPlan,
    ScanForwardPlan,
    ScanKernel,
    TilePlan,
    WalkPlan,
)
from omnimamba_cli.presets import preset
from tests.ops import test_block_backends, test_fused_backends, test_scan_backends
from tests.timing.machine import Log, compile_together, peak_gib, seconds_each

PARTS = ("check", "scan", "scan-gradient", "conv", "norms", "lora", "products", "block")
LENGTH = 329  # of a drawing: 72 tokens of text and marks, 256 codes, the last of which is not read
TALKS, TALK_LENGTH = 3, 1176  # beside the drawings: pictures with their text, rounded up
BF16 = torch.bfloat16
BOTH = (Share("mmu", 1, 130), Share("t2i", 2, 65))
SCANS = [ScanForwardPlan(*p) for p in ((32, 4, 3), (32, 4, 2), (64, 4, 2), (64, 4, 1), (64, 8, 1), (16, 4, 3))]
KERNELS = {
    "states": [ScanKernel(4, 3), ScanKernel(4, 2), ScanKernel(4, 1), ScanKernel(8, 2)],
    "between": [ScanKernel(w, s, heads=h) for w, s, h in ((8, 2, 16), (8, 4, 16), (8, 3, 32), (8, 3, 8), (4, 2, 16))],
    "within": [
        ScanKernel(w, s, heads=h) for w, s, h in ((4, 2, 16), (4, 1, 16), (4, 3, 32), (4, 3, 8), (8, 2, 16), (8, 3, 16))
    ],
}
SCAN_GRADIENTS = [
    ("shipped", SCAN_GRADIENT),
    *((f"{name} {k.warps} {k.stages} heads {k.heads}", replace(SCAN_GRADIENT, **{name: k}))
      for name, kernels in KERNELS.items() for k in kernels),
    ("chunk 32", replace(SCAN_GRADIENT, chunk=32)),
    ("chunk 128", replace(SCAN_GRADIENT, chunk=128, states=ScanKernel(8, 2), within=ScanKernel(8, 1, heads=16))),
]  # fmt: skip
CONVS = [TilePlan(*p) for p in ((16, 128, 4), (32, 64, 4), (8, 256, 4), (8, 128, 4), (8, 128, 2))]
CONV_GRADIENTS = [
    WalkPlan(*p) for p in ((128, 1, 16), (256, 2, 16), (256, 1, 16), (64, 1, 16), (128, 1, 8), (128, 1, 32))
]
RESIDUALS = [RowPlan(*p) for p in ((8, 792, 80), (8, 396, 80), (8, 1584, 80), (8, 1056), (16, 528), (4, 1056))]
ROWS = [
    RowPlan(*p)
    for p in ((8, 528, 128), (8, 264, 128), (8, 1056, 128), (8, 528), (16, 528), (16, 528, 64), (8, 1056), (4, 2112))
]


class Shapes:
    """Random tensors of one layer of the 1.3B model for some rows of drawings, and TALKS pictures with text."""

    def __init__(self, rows: int) -> None:
        self.config = c = preset("1.3b").backbone
        self.packing = Packing(TALKS, TALK_LENGTH, rows, LENGTH)
        self.tokens = self.packing.rows
        torch.manual_seed(0)
        self.e, self.c, self.h, self.n = c.d_inner, c.conv_dim, c.nheads, c.d_state
        self.zxBCdt = self.normal(self.tokens, c.d_in_proj) / 2
        self.dt = 0.1 * torch.rand(self.tokens, c.nheads, device="cuda")
        self.A, self.D = -1 - 15 * torch.rand(c.nheads, device="cuda"), torch.ones(c.nheads, device="cuda")
        self.weight, self.bias = (
            torch.randn(c.conv_dim, c.d_conv, device="cuda"),
            torch.zeros(c.conv_dim, device="cuda"),
        )

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, dtype=BF16, device="cuda")

    def scan(self) -> tuple[Tensor, ...]:
        xBC = self.zxBCdt[..., self.e : self.e + self.c].contiguous()
        x, B, C = xBC.split([self.e, self.n, self.n], -1)
        return x.unflatten(-1, (self.h, -1)), self.dt, self.A, B[:, None], C[:, None], self.D, self.packing


Candidates = list[tuple[str, Callable[[], object]]]


class Run:
    """The parts."""

    def __init__(self, log: Log, rows: int) -> None:
        self.log, self.s = log, Shapes(rows)

    def table(self, part: str, candidates: Candidates, bytes_a_token: int = 0) -> None:
        """Every candidate's time, those that cannot run as a line, too."""
        compile_together([work for _, work in candidates])
        for name, work in candidates:
            try:
                took = seconds_each(work, repeats=5, calls=4) * 1e6
                self.log.result(f"{part} {name}", took, bytes_a_token * self.s.tokens)
            except Exception as error:  # any: the other candidates are wanted still
                self.log.line(f"{part} {name}: {type(error).__name__} {str(error)[:120]}")
            torch.cuda.empty_cache()

    def check(self) -> None:
        """Against the reference at the sizes that are used."""
        checks: Candidates = [
            ("scan", lambda: test_scan_backends.compare(triton_scan.ssd_scan, "cuda", BF16, 1.5e-2, 200, 2, True)),
            ("scan float32", lambda: test_scan_backends.compare_cut("cuda", test_scan_backends.UNEVEN)),
            ("conv", lambda: test_fused_backends.compare_conv("cuda", BF16, 4e-3, 70, carried=True, cut=True)),
            ("norms", lambda: test_fused_backends.compare_norms("cuda", BF16, 4e-3, 70, cut=True)),
            ("cross-entropy", lambda: test_fused_backends.compare_loss("cuda", BF16, 4e-3, 16384)),
            ("block", lambda: test_block_backends.compare(test_block_backends.REAL, "cuda", BOTH, BF16, 3e-2)),
            ("block float32", lambda: test_block_backends.compare(
                test_block_backends.REAL, "cuda", BOTH, torch.float32, 2e-4)),
            ("both tasks", lambda: test_block_backends.compare_together(
                replace(test_block_backends.REAL, lora_dropout=0.0), "cuda", 2e-4)),
            ("block as trained", lambda: test_block_backends.compare_as_trained(test_block_backends.REAL, "cuda")),
        ]  # fmt: skip
        for name, compare in checks:
            try:
                with torch.inference_mode(False), torch.enable_grad():
                    compare()
                self.log.line(f"ok      {name}")
            except Exception as error:  # any: the other checks are wanted still
                self.log.failed += 1
                self.log.line(f"WRONG   {name}: {type(error).__name__} {str(error)[:300]}")

    def scan(self) -> None:
        given = self.s.scan()
        rows: Candidates = [(f"{p}", partial(triton_scan.scan_forward, *given, plan=p)) for p in SCANS]
        self.table("scan", rows, 2 * 2 * self.s.e)

    def scan_gradient(self) -> None:
        given, dy = self.s.scan(), self.s.normal(self.s.tokens, self.s.h, self.s.e // self.s.h)
        dx, dB, dC = torch.empty_like(dy), *torch.empty(2, self.s.tokens, 1, self.s.n, dtype=BF16, device="cuda")
        work = partial(triton_scan_backward.scan_backward, *given, None, dy, None, dx, dB, dC)
        self.table("scan gradient", [(n, partial(work, plan=p)) for n, p in SCAN_GRADIENTS], 3 * 2 * self.s.e)

    def conv(self) -> None:
        s = self.s
        x, dy = s.zxBCdt[..., s.e : s.e + s.c], s.normal(s.tokens, s.c)
        dx = torch.empty_like(s.zxBCdt)[..., s.e : s.e + s.c]
        forward = partial(triton_conv.conv_forward, x, s.weight, s.bias, s.packing)
        self.table("conv", [(f"{p}", partial(forward, plan=p)) for p in CONVS], 2 * 2 * s.c)
        back = partial(triton_conv.conv_backward, x, s.weight, s.bias, s.packing, None, dy, dx, None)
        self.table("conv gradient", [(f"{p}", partial(back, plan=p)) for p in CONV_GRADIENTS], 3 * 2 * s.c)

    def norms(self) -> None:
        s = self.s
        z = s.zxBCdt[:, : s.e]
        y, dy, out, again = (s.normal(s.tokens, s.e) for _ in range(4))
        dz, gate = torch.empty_like(s.zxBCdt)[:, : s.e], torch.ones(s.e, device="cuda")
        forward = partial(triton_fused.norm_forward, y, z, gate, 1e-5, out)
        self.table("gated norm", [("", forward)], 3 * 2 * s.e)
        rstd = forward()
        back = partial(triton_fused.norm_backward, y, z, gate, rstd, dy, out, dz, again)
        self.table("gated norm gradient", [(f"{p}", partial(back, plan=p)) for p in ROWS], 6 * 2 * s.e)

    def lora(self) -> None:
        s, d = self.s, self.s.config.d_model
        dropout, pairs = triton_lora.Dropout(0.05, 1), triton_lora.Pairs(8, TALKS * TALK_LENGTH)
        joined, A = s.normal(s.tokens, d + 16), s.normal(16, d)
        x, low = joined[:, :d], joined[:, d:]
        plans = [TilePlan(*p) for p in ((32, 128), (32, 64), (16, 256), (64, 128))]
        self.table("LoRA", [(f"{p}", partial(triton_lora.narrow, x, A, pairs, dropout, low, p)) for p in plans], 2 * d)
        plans = [TilePlan(*p) for p in ((64, 128, 4, 16), (64, 64, 4, 16), (64, 128, 4, 8), (32, 128, 4, 32))]
        back = partial(triton_lora.narrow_gradient, x, low, 16, pairs, dropout)
        self.table("LoRA gradient", [(f"{p}", partial(back, p)) for p in plans], 2 * d)
        residual, dnew = torch.randn(2, s.tokens, d, device="cuda").unbind()
        rstd, norm = torch.ones(s.tokens, device="cuda"), torch.ones(d, device="cuda")
        back = partial(triton_residual.residual_backward, residual, rstd, norm, joined, A, dnew, pairs, dropout)
        self.table("residual gradient", [(f"{p}", partial(back, p)) for p in RESIDUALS], 16 * d)

    def products(self) -> None:
        s, d, w = self.s, self.s.config.d_model, self.s.config.d_in_proj
        for name, i, o in (("in_proj", d, w), ("in_proj with LoRA", d + 16, w), ("out_proj", s.e, d)):
            x, weight, dy = s.normal(s.tokens, i), s.normal(o, i), s.normal(s.tokens, o)
            rows: Candidates = [
                ("forward", partial(F.linear, x, weight)),
                ("inputs", partial(torch.mm, dy, weight)),
                ("weights", partial(torch.mm, dy.t(), x)),
            ]
            self.table(name, rows)

    def block(self) -> None:
        """A whole block, forward and backward, by ours and by autograd over single kernels."""
        s = self.s
        with torch.inference_mode(False), torch.enable_grad():
            block = Block(s.config).cuda().train()
            shares = (Share("mmu", TALKS, TALK_LENGTH), Share("t2i", s.packing.more, LENGTH))
            residual = torch.randn(s.tokens, s.config.d_model, device="cuda", requires_grad=True)
            dnew = torch.randn_like(residual)

            def forward() -> Tensor:
                with torch.autocast("cuda", BF16):
                    out: Tensor = block(residual, shares)
                return out

            kept = torch.cuda.memory_allocated()
            out = forward()
            kept = torch.cuda.memory_allocated() - kept - out.nbytes
            self.log.result("block forward", seconds_each(forward) * 1e6, bytes_kept_a_token=kept // s.tokens)
            back = partial(out.backward, dnew, retain_graph=True)
            self.log.result("block backward", seconds_each(back) * 1e6, peak_gib=peak_gib())


def profile(recompute: bool, rows: dict[str, int | None]) -> None:
    """The kernels of one step, the longest first."""
    say = Log(None).line
    say(f"-- activations {'computed again' if recompute else 'kept'}")
    bench = Stage2Bench(model="1.3b", checkpoint_activations=recompute, **rows)
    stage2 = Stage2(bench, machine_of(bench, pick_device(bench.device)[0]))
    step = partial(stage2.loop.take_step, [stage2.batch])
    step()
    torch.cuda.reset_peak_memory_stats()
    for together in (1, TOGETHER):
        took = seconds_each(step, repeats=3, calls=together)
        mfu = stage2.flops / took / 989e12
        said = f"{together} steps before the device is waited for: {took * 1e3:.1f} ms each"
        say(f"{said}, {stage2.batch.tokens} tokens, MFU {mfu:.1%} of 989 TFLOP/s, {peak_gib()} GiB")
    with torch.profiler.profile() as found:
        step()
        torch.cuda.synchronize()
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for event in found.events():
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.name.startswith("Optimizer"):
            sums[event.name][0] += event.device_time / 1e3
            sums[event.name][1] += 1
    say(f"the GPU is busy for {sum(ms for ms, _ in sums.values()):.1f} ms")
    for name, (ms, calls) in sorted(sums.items(), key=lambda row: -row[1][0])[:45]:
        say(f"{ms:9.2f} ms {calls:6.0f}  {name[:140]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between them")
    parser.add_argument("--rows", type=int, default=48, help="drawings")
    parser.add_argument("--json", type=Path, help="results as JSON lines")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--activations", choices=("kept", "again"), help="of --profile; both without it")
    parser.add_argument("--rows-t2i", type=int)
    parser.add_argument("--rows-mmu", type=int)
    given = parser.parse_args()
    log = Log(given.json)
    if not torch.cuda.is_available():
        log.line("there is no CUDA device here")
        return 5
    log.line(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}")
    if given.profile:
        ways = {"kept": (False,), "again": (True,), None: (False, True)}
        for recompute in ways[given.activations]:
            try:
                profile(recompute, {"rows_t2i": given.rows_t2i, "rows_mmu": given.rows_mmu})
            except torch.cuda.OutOfMemoryError as error:
                log.line(f"out of memory: {str(error)[:200]}")
            torch.cuda.empty_cache()
        return 0
    run = Run(log, given.rows)
    for part in given.only.split(","):
        log.attempt(part, getattr(run, part.replace("-", "_")))
    log.line(f"{log.failed} failed" if log.failed else "all parts done")
    return 1 if log.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
