"""Times decoding on the processor, beside the time that its memory needs for the bytes:

    python -m tests.timing.cpu [--only PART[,PART...]] [--repeats N] [--threads N]

Parts: products (one matrix of the 1.3B in every form), nano (pictures, batches of 1 and 8), large (a step of the 1.3B
with random weights, 4 GB of memory), all by default. The ways are measured in turn, over and over: wall time and
processor time of all threads, the least and the median of each. On a machine that others use as well compare the least
processor times; on an idle one the wall.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command has it

import torch
import torch.nn.functional as F
from torch import Tensor

import omnimamba_cli as om
from omnimamba_cli.data import sequences
from omnimamba_cli.engine import decode
from omnimamba_cli.engine.bench_machine import fill_random, measure_machine
from omnimamba_cli.engine.bench_systems import linear_weights, load_ours
from omnimamba_cli.engine.steps import PlainSteps, RowSteps
from omnimamba_cli.model.omnimamba import OmniMamba
from omnimamba_cli.model.quantized import quantize, quantize_rows
from omnimamba_cli.ops import packed_int8

PARTS = ("products", "nano", "large")
CPU = torch.device("cpu")
Work = Callable[[], object]


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def measure(title: str, ways: Mapping[str, Work], repeats: int, floors: Mapping[str, float] | None = None) -> None:
    """A table of what each way takes, measured in turn; floors are seconds."""
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for work in ways.values():
        work()
    for _ in range(repeats):
        for name, work in ways.items():
            wall, used = time.perf_counter(), time.process_time()
            work()
            took[name].append((time.perf_counter() - wall, time.process_time() - used))
    say(f"\n{title}: ms, least and median of {repeats}")
    say(f"{'':34}{'wall':>18}{'processor':>20}{'floor':>9}")
    for name, pairs in took.items():
        cells = [f"{min(v) * 1e3:9.2f} {statistics.median(v) * 1e3:9.2f}" for v in zip(*pairs, strict=True)]
        floor = f"{floors[name] * 1e3:9.2f}" if floors and name in floors else ""
        say(f"{name:34}{cells[0]:>18}{cells[1]:>20}{floor}")


def products(repeats: int, rate: float) -> None:
    """in_proj of the 1.3B for one row: four matrices, so that none is still in a cache, a fourth of the time."""
    shape, copies = (8512, 2048), 4
    weights = [torch.empty(shape) for _ in range(copies)]
    for weight in weights:
        fill_random(weight, 0.03)
    x = torch.randn(1, shape[1])
    out = torch.empty(1, shape[0])
    forms: dict[str, tuple[list[Callable[[], Tensor]], int]] = {
        "float32": ([lambda w=w: F.linear(x, w) for w in weights], 4),
    }
    # as if every matrix were small enough to be turned
    turned = [w.t().contiguous() for w in weights]
    forms["float32, turned"] = [lambda w=w: torch.mm(x, w, out=out) for w in turned], 4
    for dtype in (torch.bfloat16, torch.float16):
        narrow, y = [w.to(dtype) for w in weights], x.to(dtype)
        forms[str(dtype).removeprefix("torch.")] = [lambda w=w, y=y: F.linear(y, w) for w in narrow], 2
    int8 = [quantize_rows(w, "int8") for w in weights]
    y, scales = x.bfloat16(), [s.bfloat16() for _, s in int8]
    forms["int8, _weight_int8pack_mm"] = (
        [lambda w=w, s=s: torch._weight_int8pack_mm(y, w[0], s) for w, s in zip(int8, scales, strict=True)],
        1,
    )
    if packed_int8.refusal() is None:
        half = [torch.ops.quantized.linear_prepack_fp16(w, None) for w in weights]
        forms["float16, FBGEMM"] = [lambda w=w: torch.ops.quantized.linear_dynamic_fp16(x, w) for w in half], 2
        packed = [packed_int8.PackedInt8(*w) for w in int8]
        forms["int8, FBGEMM twice (ours)"] = [lambda w=w: w(x) for w in packed], 1
    ways = {name: (lambda form=form: [one() for one in form[0]]) for name, form in forms.items()}
    floors = {name: copies * shape[0] * shape[1] * form[1] / rate for name, form in forms.items()}
    measure(f"{copies} products with {shape[0]} x {shape[1]}", ways, repeats, floors)


def nano(repeats: int, rate: float) -> None:
    """256 codes, no guidance: the model's own forward, its step, and the same with int8 weights."""
    wide = om.load("nano", device="cpu")
    models = {"fp32": wide.for_task("t2i")}
    if packed_int8.refusal() is None:
        models["int8"] = om.load("nano", device="cpu", quantize="int8").for_task("t2i")
    config = replace(wide.config.image_sampling, guidance=1.0, candidates=1)
    ids = torch.tensor([sequences.t2i_prefix(wide.config, wide.tokenizer.encode("a red fox"))])

    def draw(kernels: str, model: OmniMamba, batch: int) -> Tensor:
        os.environ["OMNIMAMBA_KERNELS"] = kernels
        return decode.decode_image(model, ids, config, seeds=list(range(batch)), copies=batch)

    for batch in (1, 8):
        ways: dict[str, Work] = {
            "fp32, the model's own forward": lambda b=batch: draw("torch", models["fp32"], b),
            **{f"{k}, row_step": lambda b=batch, m=m: draw("auto", m, b) for k, m in models.items()},
        }
        measure(f"nano, codes of {batch} pictures", ways, repeats)
        same = torch.equal(draw("torch", models["fp32"], batch), draw("auto", models["fp32"], batch))
        say(f"fp32: {'the same codes' if same else 'OTHER CODES'}")
    os.environ["OMNIMAMBA_KERNELS"] = "auto"
    if "int8" in models:
        change(models["fp32"], models["int8"], ids, draw("auto", models["fp32"], 1))


@torch.inference_mode()
def change(wide: OmniMamba, narrow: OmniMamba, ids: Tensor, codes: Tensor) -> None:
    """What int8 changes in the scores of one picture's codes."""
    scores = []
    for model in (wide, narrow):
        x = torch.cat([model.embed_caption(ids), model.embed_codes(codes[:, :-1])], dim=1)
        scores.append(model.logits(model(x, "t2i"), "t2i")[0, -codes.shape[1] :].float())
    a, b = scores
    ratio = (a - b).norm() / a.norm()
    same = (a.argmax(-1) == b.argmax(-1)).float().mean()
    nats = F.kl_div(b.log_softmax(-1), a.log_softmax(-1), log_target=True, reduction="sum") / len(a)
    say(f"int8: logits change by {ratio:.4f} (RMS), {same:.1%} of the likeliest codes the same, {nats:.5f} nats a code")


@torch.inference_mode()
def large(repeats: int, rate: float) -> None:
    """Steps of the 1.3B, of one row and of two, and what int8 changes in the logits."""
    for dtype in ("bf16", "fp16"):
        model = load_ours("1.3b", "cpu", dtype, "text", 2000).model
        steps(f"1.3b {dtype}, a step", model, {"forward": PlainSteps, "row_step": RowSteps}, repeats, rate)
    if packed_int8.refusal() is None:
        narrow(repeats, rate)


def narrow(repeats: int, rate: float) -> None:
    model = load_ours("1.3b", "cpu", "bf16", "text", 2000).model
    x = torch.randn(1, 32, model.config.backbone.d_model, generator=torch.Generator().manual_seed(0)).bfloat16() / 50
    before = model.logits(model(x, "mmu")[:, -1], "mmu").float()
    begun = time.perf_counter()
    quantize(model, "mmu", "int8", pack=True)
    say(f"\npacked after {time.perf_counter() - begun:.1f} s")
    after = model.logits(model(x, "mmu")[:, -1], "mmu").float()
    say(f"logits of random weights: RMS ratio of the change {(after - before).norm() / before.norm():.3f}")
    steps("1.3b int8, a step", model, {"row_step": RowSteps}, repeats, rate)


def steps(title: str, model: OmniMamba, kinds: Mapping[str, Callable[..., object]], repeats: int, rate: float) -> None:
    for rows in (1, 2):
        ways, floors = {}, {}
        for name, kind in kinds.items():
            step = kind(model, "mmu", model.new_state(rows))
            ways[name] = lambda s=step, r=rows: s(torch.zeros(r, dtype=torch.int64))  # type: ignore[operator]
            head = model.narrow_heads if "mmu" in model.narrow_heads else model.text_embedding
            read = sum(size for part in (model.layers, head) for _, size in linear_weights(part))
            floors[name] = (read + 2 * model.new_state(rows).nbytes) / rate
        measure(f"{title}, {rows} rows", ways, repeats, floors)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between them")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    machine = measure_machine(CPU, torch.float32)
    rate = machine.read_bytes_per_s
    say(f"{machine.name}, torch {torch.__version__}, reads {rate / 1e9:.1f} GB/s, {os.cpu_count()} processors")
    for part in given.only.split(","):
        {"products": products, "nano": nano, "large": large}[part](given.repeats, rate)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
