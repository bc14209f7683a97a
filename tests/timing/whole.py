"""Whole tasks at 1.3B with random weights: text, pictures, prefill, narrow weights, memory, drift of the state."""

import copy
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from omnimamba_cli.config import SamplingConfig
from omnimamba_cli.engine import decode
from omnimamba_cli.engine.decoder import RING, Decoder, decoder_for
from omnimamba_cli.engine.pixels import PixelDecoder
from omnimamba_cli.engine.recording import Recording
from omnimamba_cli.model.omnimamba import OmniMamba
from omnimamba_cli.model.stepping import StepMemory, Stepper
from omnimamba_cli.model.vq import VQModel
from omnimamba_cli.ops import registry
from tests.numerics import relative_error
from tests.timing.machine import Log, peak_gib, seconds_each

GREEDY = SamplingConfig()


def prefix(model: OmniMamba, rows: int, length: int) -> Tensor:
    rng = torch.Generator("cuda").manual_seed(1)
    x = torch.randn(rows, length, model.config.backbone.d_model, device="cuda", generator=rng)
    return (0.02 * x).to(model.dtype)


def step_bytes(decoder: Decoder, memory: StepMemory) -> float:
    """What one step cannot but read, and of the state write: every second token."""
    s = decoder.stepper
    weights = [s.head.weight, *(w for layer in s.layers for w in (layer.into.weight, layer.out.weight))]
    return sum(w.nbytes for w in weights) + 1.5 * memory.ssm.nbytes


def text(log: Log, model: OmniMamba, name: str) -> None:
    """Milliseconds a token at batch 1: the recorded step alone, then through the iterator that users have."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    decoder = decoder_for(model, "mmu")
    assert decoder is not None, "no decoder here"
    program = decoder.program(1, decoder.rule(GREEDY), RING)
    torch.cuda.synchronize()
    log.line(f"{name}: recorded after {time.perf_counter() - began:.1f} s, kernels chained: {decoder.kernels.pdl}")
    nbytes = step_bytes(decoder, program.memory)
    log.result(f"{name}: step", seconds_each(program.step, calls=100) * 1e6, nbytes)
    torch.cuda.reset_peak_memory_stats()
    x = prefix(model, 1, 760)
    tokens = 1001

    def read(steps: int) -> float:
        begin = time.perf_counter()
        for _ in decode.decode_text(model, x, GREEDY, steps=steps, seeds=[0]):
            pass
        return time.perf_counter() - begin

    model.config = replace(model.config, text=replace(model.config.text, eos_id=-1))  # never ends
    decoder.config = model.config
    first = min(read(1) for _ in range(3))
    whole = read(tokens)
    log.result(
        f"{name}: a token of {tokens}, iterator", (whole - first) / (tokens - 1) * 1e6, nbytes, ttft_ms=first * 1e3
    )
    log.line(f"{name}: peak {peak_gib()} GiB")
    log.fact(name=f"{name}: peak", gib=peak_gib())


def long_text(log: Log, model: OmniMamba, tokens: int) -> None:
    """Flatness over a long text, thousand by thousand, and its memory; the position table's last row is repeated."""
    decoder = decoder_for(model, "mmu")
    assert decoder is not None, "no decoder here"
    program = decoder.program(1, decoder.rule(GREEDY), RING)
    torch.cuda.reset_peak_memory_stats()
    for _ in range(tokens // 10_000):
        log.result("long text: step", seconds_each(program.step, repeats=1, calls=9_999) * 1e6, peak_gib=peak_gib())


def prefills(log: Log, model: OmniMamba) -> None:
    """Reading a prefix: through the model as it is, and as the decoder does it."""
    decoder = decoder_for(model, "mmu")
    assert decoder is not None, "no decoder here"
    memory = decoder.program(1, decoder.rule(GREEDY), RING).memory
    flops = 2 * sum(layer.into.weight.numel() + layer.out.weight.numel() for layer in decoder.stepper.layers)
    for length in (72, 760, 16_000):
        x = prefix(model, 1, length)
        torch.cuda.reset_peak_memory_stats()
        plain = seconds_each(lambda x=x: model(x, "mmu", model.new_state(1)), repeats=3)
        ours = seconds_each(lambda x=x: decoder.read(model, x, memory), repeats=5)
        tflops = round(flops * length / ours / 1e12)
        log.result(f"prefill {length}", ours * 1e6, plain_ms=round(plain * 1e3, 2), tflops=tflops, gib=peak_gib())


def pictures(log: Log, model: OmniMamba, batches: tuple[int, ...]) -> None:
    """Codes a second by batch, and one picture from prompt to pixels."""
    config = SamplingConfig(temperature=1.0)
    codes = model.config.vq.codes
    for batch in batches:
        ids = torch.randint(0, 50_000, (batch, model.config.t2i_prefix), device="cuda")
        seeds = list(range(batch))
        decode.decode_image(model, ids, config, seeds=seeds)
        decoder = decoder_for(model, "t2i")
        assert decoder is not None, "no decoder here"
        program = decoder.program(batch, decoder.rule(config), codes)
        step = seconds_each(program.step, calls=20)
        nbytes = step_bytes(decoder, program.memory)
        log.result(f"codes b {batch}: step", step * 1e6, nbytes, codes_per_s=round(batch / step))
        each = seconds_each(
            lambda ids=ids, seeds=seeds: decode.decode_image(model, ids, config, seeds=seeds), repeats=2
        )
        log.result(f"codes b {batch}: picture", each * 1e6, codes_per_s=round(batch * codes / each))
    vq = VQModel(model.config.vq).cuda().eval()
    draw = PixelDecoder(vq)
    ids = torch.randint(0, 50_000, (1, model.config.t2i_prefix), device="cuda")

    def picture() -> None:
        draw(decode.decode_image(model, ids, config, seeds=[0])).cpu()

    picture()
    some = torch.randint(0, 16_384, (1, codes), device="cuda")
    log.result("pixels of one picture", seconds_each(lambda: draw(some)) * 1e6)
    log.result("pixels of one picture, as it was", seconds_each(lambda: vq.decode(some)) * 1e6)
    times = []
    for _ in range(3):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        picture()
        times.append(time.perf_counter() - begin)
    log.result("prompt to pixels", sorted(times)[1] * 1e6, floor_ms=round(0.93 * codes))
    log.line(f"pictures: peak {peak_gib()} GiB")


def accuracy(log: Log, model: OmniMamba) -> None:
    """Logits after a prefix, and of a step after it, against float32 arithmetic on the same weights."""
    decoder = decoder_for(model, "mmu")
    assert decoder is not None, "no decoder here"
    x = prefix(model, 1, 200)
    memory = decoder.stepper.memory(1, len(decoder.table), torch.float32)
    decoder.read(model, x[:, :-1], memory)
    read = memory.logits.clone()
    memory.position += 1
    memory.residual.copy_(x[:, -1].float() + model.mmu_positions[199].float())
    decoder.stepper.step(memory)
    forward = model.logits(model(x, "mmu")[:, -1], "mmu").float()
    with _plain_kernels():
        plain = model.logits(model(x, "mmu")[:, -1], "mmu").float()
    errors = {
        "a step against the model's own forward": relative_error(forward, memory.logits),
        "that forward against plain PyTorch's": relative_error(plain, forward),
    }
    if not model.narrow_heads:
        exact = copy.deepcopy(model).float()
        before, truth = (exact.logits(y, "mmu") for y in exact(x.float(), "mmu")[:, -2:].unbind(1))
        errors["a prefix, decoded, against float32"] = relative_error(before, read)
        errors["a step after it against float32"] = relative_error(truth, memory.logits)
        errors["the model's own forward against float32"] = relative_error(truth, forward)
    for name, error in errors.items():
        log.line(f"{name}: RMS ratio of the logits {error:.1e}")
        log.fact(name=f"logits: {name}", error=error)


@contextmanager
def _plain_kernels() -> Iterator[None]:
    before = os.environ.get(registry.ENVIRONMENT)
    os.environ[registry.ENVIRONMENT] = "torch"
    try:
        yield
    finally:
        if before is None:
            del os.environ[registry.ENVIRONMENT]
        else:
            os.environ[registry.ENVIRONMENT] = before


def drift(log: Log, model: OmniMamba, steps: int = 10_000) -> None:
    """Logits with a narrow state against those with a float32 one, after many steps on the same inputs."""
    decoder = decoder_for(model, "mmu")
    assert decoder is not None, "no decoder here"
    x = prefix(model, 1, 64)[0].float() * 30
    memories = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        memory = decoder.stepper.memory(1, len(decoder.table), dtype)
        memories[dtype] = memory, _recorded(decoder.stepper, memory)
        memory.ssm.zero_()
        memory.ring.zero_()
        memory.position.zero_()
    for i in range(steps):
        for memory, step in memories.values():
            memory.residual.copy_(x[i % 64][None])
            step()
            memory.position += 1
        if i + 1 in (64, 256, 1000, 2000, steps):
            exact = memories[torch.float32][0].logits
            for dtype in (torch.float16, torch.bfloat16):
                error = relative_error(exact, memories[dtype][0].logits)
                log.line(f"state {dtype} after {i + 1} steps: logits' RMS ratio {error:.1e}")
                log.fact(name="drift", dtype=str(dtype), steps=i + 1, error=error)


def _recorded(stepper: Stepper, memory: StepMemory) -> Callable[[], None]:
    def record(pending: bool) -> Recording:
        def step() -> None:
            memory.pending = pending
            stepper.step(memory)

        return Recording(step, torch.device("cuda"))

    turns = record(False), record(True)
    memory.pending = False

    def step() -> None:
        turns[memory.pending]()
        memory.pending = not memory.pending

    return step


def same_tokens(log: Log, config: SamplingConfig) -> None:
    """Greedy float32 tokens of the recorded steps and of the plain loop, on a small model."""
    from tests.engine.test_decoder import gpu_model, gpu_prefix, plain_text, written

    model = gpu_model()
    x = gpu_prefix(2)
    fast = written(decode.decode_text(model, x, config, steps=40, seeds=[0, 1]), 2)
    plain = plain_text(model, x, config, 40)
    log.line(f"{'ok     ' if fast == plain else 'WRONG  '} greedy tokens of recorded steps: {len(fast[0])} of row 0")
    log.fact(name="check greedy tokens", ok=fast == plain)
    log.failed += fast != plain
