"""Checks and times the decoding step on a GPU, at 1.3B with random weights, within some 150 seconds:

    python -m tests.timing.run [--json FILE] [--only PART[,PART...]] [--long TOKENS] [--seconds N]

Parts: check, text, fp16, prefill, drift, kernels, int8, fp8, pictures, all in this order by default. One that fails is
a line; the others go on. After --seconds nothing new is begun. The plans in ops/step_plans.py are chosen by what this
prints.
"""

import argparse
from dataclasses import dataclass, field
from pathlib import Path

import torch
import triton

from omnimamba_cli.config import SamplingConfig
from omnimamba_cli.model.omnimamba import OmniMamba
from omnimamba_cli.model.quantized import quantize
from omnimamba_cli.ops import registry
from tests.ops import test_step_backends as backends
from tests.timing import kernels, whole
from tests.timing.machine import Log, compile_together, random_model

PARTS = ("check", "text", "fp16", "prefill", "drift", "kernels", "int8", "fp8", "pictures")


@dataclass
class Run:
    """The parts, and the text model that several of them use."""

    log: Log
    long: int = 0
    models: dict[str, OmniMamba] = field(default_factory=dict)

    def model(self) -> OmniMamba:
        if "bf16" not in self.models:
            self.models["bf16"] = random_model("mmu")
        return self.models["bf16"]

    def check(self) -> None:
        """Every kernel against the reference, at the sizes that are used and at odd ones."""
        bf16, f32 = torch.bfloat16, torch.float32
        pdl = torch.cuda.get_device_capability()[0] >= 9
        checks = {
            "vector": lambda: backends.compare_product(
                "cuda", bf16, 1, 8512, 2048, backends.VECTOR, add=False, pdl=pdl
            ),
            "vector add": lambda: backends.compare_product(
                "cuda", bf16, 2, 2048, 4096, backends.VECTOR, add=True, wide=False
            ),
            "vector int8": lambda: backends.compare_product(
                "cuda", bf16, 1, 8512, 2048, backends.VECTOR, add=False, kind="int8"
            ),
            "vector fp8": lambda: backends.compare_product(
                "cuda", bf16, 1, 8512, 2048, backends.VECTOR, add=False, kind="fp8"
            ),
            "vector odd": lambda: backends.compare_product("cuda", f32, 3, 61, 72, backends.VECTOR, add=False),
            "batch": lambda: backends.compare_batch("cuda", bf16, 17, 2048, 4096, backends.TILES, pdl=pdl),
            "batch int8": lambda: backends.compare_batch("cuda", bf16, 17, 8512, 2048, backends.TILE, kind="int8"),
            "mixer": lambda: backends.compare_mixer("cuda", bf16, 1, 1, h=64, p=64, n=128, rows=16, pdl=pdl),
            "mixer half": lambda: backends.compare_mixer(
                "cuda", bf16, 3, 2, h=4, p=64, n=128, rows=32, state=torch.float16
            ),
            "prefill": lambda: backends.compare_prefill("cuda", bf16, 200, 1, h=4, p=64, n=128),
            "draw": lambda: backends.compare_draw("cuda", backends.RULES[2], 2, v=50_288, limit=50_277, d=2048),
            "draw guided": lambda: backends.compare_draw("cuda", backends.RULES[5], 3),
            "greedy penalty": lambda: backends.compare_draw("cuda", backends.RULES[4], 3),
        }
        compile_together(list(checks.values()))
        for name, compare in checks.items():
            try:
                compare()
                self.log.line(f"ok      {name}")
                self.log.fact(name=f"check {name}", ok=True)
            except Exception as error:  # any: the other checks are wanted still
                self.log.failed += 1
                self.log.line(f"WRONG   {name}: {type(error).__name__} {str(error)[:300]}")
                self.log.fact(name=f"check {name}", ok=False, error=str(error)[:300])
        whole.same_tokens(self.log, SamplingConfig())

    def kernels(self) -> None:
        stepper = kernels.Stepper(self.model(), "mmu", registry.step_kernels(self.model().norm_f.weight))
        for which, batch, kind, plans in kernels.VECTORS:
            part = f"{which} {batch} {kind}"
            self.log.attempt(
                part, lambda w=which, b=batch, k=kind, p=plans: kernels.vectors(self.log, stepper, w, b, k, p)
            )
        for which, batch, kind, plans in kernels.BATCHES:
            part = f"{which} {batch} {kind}"
            self.log.attempt(
                part, lambda w=which, b=batch, k=kind, p=plans: kernels.batches(self.log, stepper, w, b, k, p)
            )
        for batch, state in ((1, torch.float32), (16, torch.float16), (64, torch.float32), (64, torch.float16)):
            self.log.attempt(f"mixer {batch}", lambda b=batch, s=state: kernels.mixers(self.log, stepper, b, s))
        self.log.attempt("scans", lambda: kernels.scans(self.log, stepper))
        self.log.attempt("head, draw", lambda: kernels.heads_and_draws(self.log, stepper, self.model()))

    def text(self) -> None:
        whole.text(self.log, self.model(), "text bf16")
        whole.accuracy(self.log, self.model())
        if self.long:
            whole.long_text(self.log, self.model(), self.long)

    def fp16(self) -> None:
        """The same weights and steps in the other 16 bits: three more of mantissa, and less range."""
        self.models.clear()
        whole.accuracy(self.log, random_model("mmu", dtype=torch.float16))

    def prefill(self) -> None:
        whole.prefills(self.log, self.model())

    def int8(self) -> None:
        self.narrow("int8")

    def fp8(self) -> None:
        self.narrow("fp8")

    def narrow(self, kind: str) -> None:
        self.models.clear()
        model = quantize(random_model("mmu"), "mmu", kind)  # type: ignore[arg-type]  # one of the two
        whole.text(self.log, model, f"text {kind}")
        whole.accuracy(self.log, model)

    def pictures(self) -> None:
        self.models.clear()
        whole.pictures(self.log, random_model("t2i"), (1, 16, 64))

    def drift(self) -> None:
        whole.drift(self.log, self.model())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="results as JSON lines")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between them")
    parser.add_argument(
        "--long", type=int, default=0, metavar="TOKENS", help="also this many tokens of text, in tens of thousands"
    )
    parser.add_argument("--seconds", type=float, default=140.0, help="no part begins after these")
    given = parser.parse_args()
    log = Log(given.json, given.seconds)
    if not torch.cuda.is_available():
        log.line("there is no CUDA device here")
        return 5
    name = torch.cuda.get_device_name()
    log.line(f"{name}, torch {torch.__version__}, triton {triton.__version__}")
    log.fact(name="machine", device=name, torch=torch.__version__, triton=triton.__version__)
    run = Run(log, given.long)
    for part in given.only.split(","):
        log.attempt(part, getattr(run, part))
    log.line(f"{log.failed} failed" if log.failed else "all parts done")
    return 1 if log.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
