"""The recorded step: on a CPU the same code without recording, held to the plain loops; on a GPU as users have it."""

import copy
import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import pytest
import torch
from torch import Tensor

import omnimamba_cli as om
from omnimamba_cli.config import ModelConfig, SamplingConfig, Task
from omnimamba_cli.engine import decode, decoder
from omnimamba_cli.engine.decoder import Decoder, decoder_for
from omnimamba_cli.errors import DeviceError, InputError
from omnimamba_cli.model.lora import merged
from omnimamba_cli.model.omnimamba import OmniMamba
from omnimamba_cli.model.quantized import QUANTIZATIONS, Quantization, QuantizedLinear, quantize
from omnimamba_cli.model.stepping import Stepper, embedding_tables
from omnimamba_cli.ops import registry
from omnimamba_cli.ops.step import StepKernels
from tests.cases import small
from tests.engine.test_decode import END, GREEDY, SAMPLED, STEPS, captions, prefix, text
from tests.numerics import assert_close, relative_error

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


CONFIGS = {
    "greedy": GREEDY,
    "top-k": SAMPLED,
    "min-p": SamplingConfig(temperature=1.5, min_p=0.02),
    "penalty": replace(GREEDY, repetition_penalty=1.5),
    "all": SamplingConfig(temperature=1.2, top_k=25, top_p=0.9, min_p=0.01, repetition_penalty=1.2),
}


@pytest.fixture(scope="module")
def model() -> OmniMamba:
    """Its end-of-text is likely enough that rows end at different steps."""
    result = small.model()
    result.text_embedding.weight.data[END] *= 2.5
    return result


@pytest.fixture(scope="module")
def mmu(model: OmniMamba) -> OmniMamba:
    return merged(model, "mmu")


@pytest.fixture(scope="module")
def t2i(model: OmniMamba) -> OmniMamba:
    return merged(model, "t2i")


def written(steps: Iterator[list[tuple[int, int]]], rows: int) -> list[list[int]]:
    result: list[list[int]] = [[] for _ in range(rows)]
    for step in steps:
        for row, token in step:
            result[row].append(token)
    return result


def fast_text(d: Decoder, m: OmniMamba, x: Tensor, config: SamplingConfig, steps: int = STEPS) -> list[list[int]]:
    with torch.inference_mode():
        return written(d.text(m, x, config, steps=steps, seeds=list(range(len(x)))), len(x))


# the decoder's logic, without recording


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_text_is_that_of_the_plain_loop(mmu: OmniMamba, config: SamplingConfig) -> None:
    want = text(mmu, prefix(), config, list(range(6)))
    d = Decoder(mmu, "mmu", StepKernels())
    assert fast_text(d, mmu, prefix(), config) == want
    assert fast_text(d, mmu, prefix(), config) == want, "nothing of the first time is left over"
    assert len({len(row) for row in want}) > 1 or config.temperature == 0, "rows end at different steps"


@pytest.mark.parametrize("config", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_text_goes_on_after_a_state(mmu: OmniMamba, config: SamplingConfig) -> None:
    whole = prefix()
    want = text(mmu, whole, config, list(range(6)))
    d, cut = Decoder(mmu, "mmu", StepKernels()), whole.shape[1] - 2
    with torch.inference_mode():
        state = mmu.new_state(6)
        mmu(whole[:, :cut], "mmu", state)
        fresh = [state.clone() for _ in range(2)]
        seeds = list(range(6))
        rest = whole[:, cut:]
        assert written(d.text(mmu, rest, config, steps=STEPS, seeds=seeds, state=fresh[0]), 6) == want
        assert written(decode.decode_text(mmu, rest, config, steps=STEPS, seeds=seeds, state=fresh[1]), 6) == want
        with pytest.raises(InputError, match="past the model's limit"):
            next(d.text(mmu, rest, config, steps=mmu.config.mmu_positions - cut, seeds=seeds, state=state))


def test_steps_are_a_limit(mmu: OmniMamba) -> None:
    d = Decoder(mmu, "mmu", StepKernels())
    whole = fast_text(d, mmu, prefix(), SAMPLED)
    for steps in (1, 2, decoder.CHUNK + 1, decoder.CHUNK + 2):
        assert fast_text(d, mmu, prefix(), SAMPLED, steps) == [row[:steps] for row in whole]


def test_a_full_ring_begins_again(mmu: OmniMamba, monkeypatch: pytest.MonkeyPatch) -> None:
    want = text(mmu, prefix(), SAMPLED, list(range(6)))
    monkeypatch.setattr(decoder, "RING", 6)
    assert fast_text(Decoder(mmu, "mmu", StepKernels()), mmu, prefix(), SAMPLED) == want


def test_at_most_eight_steps_are_done_in_vain(mmu: OmniMamba, monkeypatch: pytest.MonkeyPatch) -> None:
    d = Decoder(mmu, "mmu", StepKernels())
    done: list[int] = []
    real = d.stepper.step
    monkeypatch.setattr(d.stepper, "step", lambda memory: done.append(1) or real(memory))
    rows = fast_text(d, mmu, prefix(), SAMPLED)
    longest = max(len(row) for row in rows)
    assert longest < STEPS
    assert longest - 1 <= sum(done) <= longest - 1 + 2 * decoder.CHUNK


def test_two_texts_at_once_do_not_mix(mmu: OmniMamba) -> None:
    d = Decoder(mmu, "mmu", StepKernels())
    x = prefix(), prefix().flip(0)
    alone = [fast_text(d, mmu, one, SAMPLED) for one in x]
    with torch.inference_mode():
        streams = [d.text(mmu, one, SAMPLED, steps=STEPS, seeds=list(range(6))) for one in x]
        pairs = list(zip_longest(*streams, fillvalue=[]))
    assert [written(iter([pair[i] for pair in pairs]), 6) for i in range(2)] == alone
    assert fast_text(d, mmu, x[0], SAMPLED) == alone[0]


def test_settings_have_steps_of_their_own_and_rows_share_memory(mmu: OmniMamba) -> None:
    d = Decoder(mmu, "mmu", StepKernels())
    keys = [d.rule(config) for config in CONFIGS.values()]
    programs = [d.program(2, rule, decoder.RING) for rule in keys]
    assert len({id(p) for p in programs}) == len(CONFIGS)
    assert len({id(p.memory) for p in programs}) == 1
    assert d.program(2, keys[-1], decoder.RING) is programs[-1]
    assert d.program(3, keys[-1], decoder.RING).memory is not programs[-1].memory
    assert d.program(2, keys[-1], decoder.RING) is not programs[-1], "memory of other rows is given up"


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("config", [SAMPLED, GREEDY], ids=["sampled", "greedy"])
def test_pictures_are_those_of_the_plain_loop(t2i: OmniMamba, config: SamplingConfig, guidance: float) -> None:
    config = replace(config, guidance=guidance)
    ids = captions([1, 2, 3], [4], [], []) if guidance != 1 else captions([1, 2, 3], [4])
    want = decode.decode_image(t2i, ids, config, seeds=[3, 4])
    d = Decoder(t2i, "t2i", StepKernels())
    with torch.inference_mode():
        assert torch.equal(d.image(t2i, ids, config, seeds=[3, 4]), want)
        assert torch.equal(d.image(t2i, ids, config, seeds=[3, 4]), want)
        several = d.image(t2i, ids, config, seeds=[3, 4, 5, 6])
    assert torch.equal(several, decode.decode_image(t2i, ids, config, seeds=[3, 4, 5, 6], copies=2))


def test_codes_are_told_while_they_are_drawn(t2i: OmniMamba, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, config = captions([1, 2, 3], [4]), SAMPLED
    for module in (decode, decoder):
        monkeypatch.setattr(module, "WATCHED", 7)
    want = decode.decode_image(t2i, ids, config, seeds=[3, 4])
    d = Decoder(t2i, "t2i", StepKernels())
    for draw in (decode.decode_image, d.image):
        told: list[Tensor] = []
        with torch.inference_mode():
            assert torch.equal(draw(t2i, ids, config, seeds=[3, 4], watch=told.append), want)
        assert [len(codes[0]) for codes in told] == [*range(7, want.shape[1], 7), want.shape[1]]
        assert all(torch.equal(codes, want[:, : codes.shape[1]]) for codes in told)


def test_the_state_after_steps_is_that_of_a_prefill(mmu: OmniMamba) -> None:
    length = 12  # of which 8 are steps: the state is written with every second one
    x = prefix(rows=3, length=length)
    with torch.inference_mode():
        stepper = Stepper(mmu, "mmu", StepKernels())
        memory = stepper.memory(3, len(mmu.text_embedding.weight), torch.float32)
        state = mmu.new_state(3)
        mmu(x[:, :4], "mmu", state)
        memory.take(state)
        for i in range(4, length):
            memory.position += 1
            memory.residual.copy_(x[:, i] + mmu.mmu_positions[i])
            stepper.step(memory)
        whole = mmu.new_state(3)
        want = mmu.logits(mmu(x, "mmu", whole)[:, -1], "mmu")
    assert_close("ssm", whole.ssm, memory.ssm, 1e-5)
    assert_close("logits", want, memory.logits, 1e-5)
    k = memory.ring.shape[2]
    for back in range(1, k):
        assert_close("conv", whole.conv[:, :, -back], memory.ring[:, :, (length - back) % k], 1e-5)


def test_what_is_past_the_table_is_refused_before_it_starts(mmu: OmniMamba) -> None:
    room = small.CONFIG.mmu_positions - 9
    d = Decoder(mmu, "mmu", StepKernels())
    assert fast_text(d, mmu, prefix(), GREEDY, room + 1)
    with pytest.raises(InputError, match=f"{small.CONFIG.mmu_positions + 1} tokens are past"):
        fast_text(d, mmu, prefix(), GREEDY, room + 2)


def test_a_decoder_does_not_keep_its_model() -> None:
    m = merged(small.model(), "mmu")
    d, gone = Decoder(m, "mmu", StepKernels()), weakref.ref(m)
    with torch.inference_mode():
        d.read(m, prefix(2), d.program(2, d.rule(GREEDY), 8).memory)
    del m
    gc.collect()
    assert gone() is None


def test_codes_are_embedded_once_for_all_steps(t2i: OmniMamba) -> None:
    table, _ = embedding_tables(t2i, "t2i", piece=7)
    codes = torch.arange(len(table))
    with torch.inference_mode():
        assert_close("table", t2i.embed_codes(codes[:5][:, None])[:, 0], table[:5], 1e-6)
        assert_close("table", t2i.embed_codes(codes[-3:][:, None])[:, 0], table[-3:], 1e-6)


def test_without_a_gpu_or_unmerged_the_plain_loops_run(model: OmniMamba, mmu: OmniMamba) -> None:
    assert decoder_for(mmu, "mmu") is None
    assert decoder_for(model, "mmu") is None


INTERPRETED = """
import copy
from dataclasses import replace
import torch
from omnimamba_cli.engine import decode, prefix_reader
from omnimamba_cli.engine.decoder import Decoder
from omnimamba_cli.model.lora import merged
from omnimamba_cli.model.omnimamba import OmniMamba
from omnimamba_cli.model.quantized import quantize
from omnimamba_cli.ops import triton_batch, triton_draw, triton_prefill, triton_step
from omnimamba_cli.ops.step import StepKernels
from tests.cases import small
from tests.engine.test_decode import captions, text
from tests.engine.test_decoder import CONFIGS, decoded, fast_text
from tests.numerics import assert_close
torch.manual_seed(0)
c = small.CONFIG
c = replace(c, backbone=replace(c.backbone, d_model=32, n_layer=1), vq=replace(c.vq, image_size=4))
model = OmniMamba(c).eval()
kernels = StepKernels(triton_step, triton_batch, triton_draw, triton_prefill)
mmu, t2i = merged(model, "mmu"), merged(model, "t2i")
d = Decoder(mmu, "mmu", kernels)
for name, rows, times in (("penalty", 2, 3), ("all", 1, 1)):  # the prefix is read plainly, recorded, repeated
    x = torch.randn(rows, 5, 32)
    want = text(mmu, x, CONFIGS[name], list(range(rows)), steps=3)
    for _ in range(times):
        assert fast_text(d, mmu, x, CONFIGS[name], 3) == want, name
narrow = quantize(merged(model, "mmu"), "mmu", "int8")
x = torch.randn(5, 5, 32)  # more rows than go through the vector kernels
want = text(narrow, x, CONFIGS["all"], list(range(5)), steps=3)
assert fast_text(Decoder(narrow, "mmu", kernels), narrow, x, CONFIGS["all"], 3) == want
config = replace(CONFIGS["min-p"], guidance=2.5)
ids = captions([1, 2, 3], [])
with torch.inference_mode():
    got = Decoder(t2i, "t2i", kernels).image(t2i, ids, config, seeds=[3, 4])
assert torch.equal(got, decode.decode_image(t2i, ids, config, seeds=[3, 4], copies=2))
# a task's rows lie in the middle of a shared table
one = merged(OmniMamba(replace(c, vocabulary="shared")).eval(), "t2i")
with torch.inference_mode():
    got = Decoder(one, "t2i", kernels).image(one, ids[:1], CONFIGS["greedy"], seeds=[3])
assert torch.equal(got, decode.decode_image(one, ids[:1], CONFIGS["greedy"], seeds=[3]))
half, x = copy.deepcopy(merged(model, "mmu")).bfloat16(), torch.randn(2, 5, 32).bfloat16()
for want, got in decoded(half, x, kernels):
    assert_close("read in float16", want, got, 1e-3)
# where float16 is too narrow a prefix is read again (in float32: the interpreter has no products in bfloat16)
prefix_reader.NARROWER[torch.float32] = torch.float16
model.layers[0].mixer.in_proj.weight.data[: model.config.backbone.d_inner] *= 1e6  # the gate
for want, got in decoded(merged(model, "mmu"), x.float(), kernels):
    assert_close("read again", want, got, 1e-5)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is a Linux package")
def test_decoding_on_interpreted_kernels_is_that_of_the_plain_loop() -> None:
    pytest.importorskip("triton")
    # a process of its own: Triton reads the variable when it is imported
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", INTERPRETED], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# rounding


def decoded(model: OmniMamba, x: Tensor, kernels: StepKernels) -> list[tuple[Tensor, Tensor]]:
    """Logits (b v) before the last of x (b l d), from a prefix, and after it, from a step: in float32, and decoded."""
    with torch.inference_mode():
        d = Decoder(model, "mmu", kernels)
        memory = d.program(len(x), d.rule(GREEDY), 8).memory
        d.read(model, x[:, :-1], memory)
        after_prefix = memory.logits.clone()
        memory.position += 1
        memory.residual.copy_(x[:, -1].float() + d.places[x.shape[1] - 1].float())
        d.stepper.step(memory)
        exact = copy.deepcopy(model).float()
        truth = exact.logits(exact(x.float(), "mmu")[:, -2:], "mmu")
    return [(truth[:, 0], after_prefix), (truth[:, 1], memory.logits)]


def deep_model(config: ModelConfig) -> OmniMamba:
    """As deep as the published model: rounding grows with the number of layers."""
    torch.manual_seed(0)
    return merged(OmniMamba(replace(config, backbone=replace(config.backbone, n_layer=48))).eval(), "mmu")


def test_a_step_of_few_rows_rounds_nothing_to_bfloat16() -> None:
    deep, x = deep_model(small.CONFIG).bfloat16(), prefix().bfloat16()
    exact = copy.deepcopy(deep).float()
    with torch.inference_mode():
        stepper = Stepper(deep, "mmu", StepKernels())
        memory, state = stepper.memory(len(x), len(deep.text_embedding.weight), torch.float32), exact.new_state(len(x))
        exact(x[:, :-1].float(), "mmu", state)
        memory.take(state)
        memory.position += 1
        memory.residual.copy_(x[:, -1].float() + exact.mmu_positions[x.shape[1] - 1])
        truth = exact.logits(exact(x[:, -1:].float(), "mmu", state)[:, -1], "mmu")
        stepper.step(memory)
    assert_close("logits", truth, memory.logits, 1e-5)


@pytest.mark.parametrize("task", ["mmu", "t2i"])
def test_an_overflow_of_float16_is_told(model: OmniMamba, task: Task) -> None:
    narrow = copy.deepcopy(merged(model, task)).half()
    d = Decoder(narrow, task, StepKernels())
    ids = captions([1, 2])

    def run() -> None:
        if task == "mmu":
            fast_text(d, narrow, prefix(1).half(), GREEDY, 9)
        else:
            with torch.inference_mode():
                d.image(narrow, ids, GREEDY, seeds=[0])

    run()
    narrow.norm_f.weight.data.fill_(65_000)
    with pytest.raises(DeviceError, match="do not fit float16"):
        run()


# narrow weights


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_narrow_weights_change_little_and_both_ways_agree(model: OmniMamba, kind: str) -> None:
    x = prefix()
    wide = merged(model, "mmu")
    narrow = quantize(merged(model, "mmu"), "mmu", kind)
    with torch.inference_mode():
        want, got = (m.logits(m(x, "mmu"), "mmu") for m in (wide, narrow))
    # a weight's error is 1/254 of its row's largest, or 1/16 of itself
    assert 0 < relative_error(want, got) < {"int8": 0.02, "fp8": 0.08}[kind]
    plain = text(narrow, x, SAMPLED, list(range(6)))
    assert fast_text(Decoder(narrow, "mmu", StepKernels()), narrow, x, SAMPLED) == plain


def test_a_quantized_model_refuses_the_other_task(model: OmniMamba) -> None:
    narrow = quantize(merged(model, "mmu"), "mmu", "int8")
    with pytest.raises(ValueError, match="quantized for 'mmu'"):
        narrow(prefix(), "t2i")


def test_rows_of_zeros_stay_zero() -> None:
    linear = QuantizedLinear(torch.zeros(3, 8), "fp8")
    assert torch.equal(linear(torch.ones(2, 8)), torch.zeros(2, 3))


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_a_product_of_narrow_weights_has_room_in_float16(kind: Quantization) -> None:
    linear = QuantizedLinear(torch.full((3, 2048), 0.01), kind)
    got = linear(torch.ones(2, 2048, dtype=torch.float16))  # 260,000 before it is scaled
    assert_close("product", torch.full((2, 3), 20.48), got.float(), 1e-3)


# on a GPU


def gpu_model(task: Task = "mmu") -> OmniMamba:
    """Widths at which every kernel has its usual form, merged for a task, on the GPU."""
    backbone = replace(small.CONFIG.backbone, d_model=256, d_conv=4, headdim=64, d_state=128, ngroups=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        result = OmniMamba(replace(small.CONFIG, backbone=backbone)).eval()
        for table in (result.text_embedding.weight, result.image_embedding.weight):
            table.data.normal_()
    return merged(result.cuda(), task)


def plain_text(model: OmniMamba, x: Tensor, config: SamplingConfig, steps: int) -> list[list[int]]:
    """What the plain loop with plain kernels writes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(registry.ENVIRONMENT, "torch")
        return written(decode.decode_text(model, x, config, steps=steps, seeds=list(range(len(x)))), len(x))


def gpu_prefix(rows: int, length: int = 9) -> Tensor:
    return torch.randn(rows, length, 256, generator=torch.Generator().manual_seed(5)).cuda()


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize("rows", [1, 2, 3, 9])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_recorded_text_is_that_of_the_plain_loop_on_a_gpu(config: SamplingConfig, rows: int) -> None:
    m, x, seeds = gpu_model(), gpu_prefix(rows), list(range(rows))
    fast = [written(decode.decode_text(m, x, config, steps=40, seeds=seeds), rows) for _ in range(3)]
    assert fast == [plain_text(m, x, config, 40)] * 3


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("config", [SAMPLED, GREEDY, SamplingConfig(temperature=1.0)], ids=["top-k", "greedy", "all"])
def test_recorded_pictures_are_those_of_the_plain_loop_on_a_gpu(
    config: SamplingConfig, guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, guidance=guidance)
    m = gpu_model("t2i")
    ids = (captions([1, 2, 3], [4], [], []) if guidance != 1 else captions([1, 2, 3], [4])).cuda()
    fast = [decode.decode_image(m, ids, config, seeds=[3, 4]) for _ in range(3)]
    monkeypatch.setenv(registry.ENVIRONMENT, "torch")
    plain = decode.decode_image(m, ids, config, seeds=[3, 4])
    assert all(torch.equal(codes, plain) for codes in fast)


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize("kind", [None, "int8", "fp8"])
@pytest.mark.parametrize("rows", [1, 2, 17, 70])
def test_logits_of_bfloat16_are_those_of_float32_on_a_gpu(rows: int, kind: Quantization | None) -> None:
    if kind == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this chip has no 8-bit floats")
    m = gpu_model().bfloat16()
    x, kernels = gpu_prefix(rows, 12).bfloat16(), registry.step_kernels(m.norm_f.weight)
    if kind is None:
        read, step = decoded(m, x, kernels)
        for name, pair in (("prefix", read), ("step", step)):
            assert_close(name, *pair, 1e-3 if rows <= 2 else 1e-2)  # many rows go through matrix units
        return
    quantize(m, "mmu", kind)
    fast = fast_text(Decoder(m, "mmu", kernels), m, x, GREEDY, 3)
    assert len(fast) == rows


@pytest.mark.gpu
@cuda
def test_where_float16_is_too_narrow_a_prefix_is_read_again_on_a_gpu() -> None:
    m = gpu_model().bfloat16()
    m.layers[1].mixer.in_proj.weight.data[: m.config.backbone.d_inner] *= 1e6  # the gate
    for _ in range(3):  # plainly, recorded, repeated
        for want, got in decoded(m, gpu_prefix(2).bfloat16(), registry.step_kernels(m.norm_f.weight)):
            assert_close("logits", want, got, 3e-2)


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize("length", [10, 300])
def test_bfloat16_at_full_depth_on_a_gpu(length: int) -> None:
    wide = replace(small.CONFIG, backbone=gpu_model().config.backbone, mmu_positions=400)
    m = deep_model(wide).cuda().bfloat16()
    for name, (want, got) in zip(
        ("prefix", "step"),
        decoded(m, gpu_prefix(1, length).bfloat16(), registry.step_kernels(m.norm_f.weight)),
        strict=True,
    ):
        assert_close(name, want, got, 5e-3)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_session_on_the_second_gpu_does_the_same(tiny_model: Path) -> None:
    first, second = (om.load(tiny_model, device=f"cuda:{i}") for i in range(2))
    settings = SamplingConfig(temperature=1.0, max_new_tokens=12)
    for _ in range(3):  # plainly, recorded, repeated
        pictures = [s.generate("a fox", n=2, seed=0) for s in (first, second)]
        assert [p.tobytes() for p in pictures[0]] == [p.tobytes() for p in pictures[1]]
        told = [list(s.stream_caption(pictures[0][0], sampling=settings, seed=3)) for s in (first, second)]
        assert told[0] == told[1]
    assert torch.cuda.current_device() == 0


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_a_session_on_a_gpu_answers_and_draws(tiny_model: Path, quantize: str | None) -> None:
    session = om.load(tiny_model, device="cuda", quantize=quantize)  # type: ignore[arg-type]  # one of the two
    pictures = session.generate("a fox", n=3, seed=0)
    assert [p.tobytes() for p in pictures] == [p.tobytes() for p in session.generate("a fox", n=3, seed=0)]
    settings = SamplingConfig(temperature=1.0, max_new_tokens=12)
    answers = session.captions(pictures, sampling=settings, seed=3)
    streamed = list(session.stream_caption(pictures[0], sampling=settings, seed=3))
    assert streamed[-1].finished
    assert 0 < answers[0].tokens <= 12
    assert decoder_for(session.for_task("mmu"), "mmu") is not None
    # what both tasks have in common is there once
    assert session.for_task("mmu").norm_f.weight.data_ptr() == session.for_task("t2i").norm_f.weight.data_ptr()
