"""The mixer and its block: states in place, float32 where it matters, starting values."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from omnimamba_cli.config import Mamba2Config
from omnimamba_cli.model.mamba2 import Block, Mamba2, RMSNorm
from omnimamba_cli.model.state import InferenceState
from tests.numerics import assert_close


def config(ngroups: int = 1, d_conv: int = 4) -> Mamba2Config:
    return Mamba2Config(
        d_model=32, n_layer=1, d_state=8, d_conv=d_conv, headdim=16, ngroups=ngroups, chunk_size=8, lora_rank=0
    )


def seeded(c: Mamba2Config, kind: type[torch.nn.Module] = Mamba2) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(c).eval().requires_grad_(False)


def inputs(length: int, seed: int = 0) -> Tensor:
    return torch.randn(2, length, 32, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("ngroups", [1, 2, 4])
@pytest.mark.parametrize("d_conv", [2, 3, 4])
def test_steps_equal_the_whole_and_leave_the_same_state(ngroups: int, d_conv: int) -> None:
    c = config(ngroups, d_conv)
    mixer, u = seeded(c), inputs(19)
    whole, steps = (InferenceState.zeros(c, 2, torch.device("cpu"), torch.float32) for _ in range(2))
    want = mixer(u, "mmu", whole.conv[0], whole.ssm[0])
    got = torch.cat([mixer(u[:, t : t + 1], "mmu", steps.conv[0], steps.ssm[0]) for t in range(19)], 1)
    assert_close("output", want, got, 1e-5)
    assert_close("without a state", want, mixer(u, "mmu"), 1e-6)
    assert_close("conv", whole.conv, steps.conv, 1e-6)
    assert_close("ssm", whole.ssm, steps.ssm, 1e-5)


def test_a_head_of_another_group_reads_its_own_inputs() -> None:
    # the first group's B reaches the first half of the heads only
    c = config(ngroups=2)
    mixer, u = seeded(c), inputs(6)
    state = InferenceState.zeros(c, 2, torch.device("cpu"), torch.float32)
    mixer(u, "mmu", state.conv[0], state.ssm[0])
    first = c.d_inner  # B of the first group begins here in the convolution's channels
    mixer.conv1d.weight[first : first + c.d_state] *= 2
    other = InferenceState.zeros(c, 2, torch.device("cpu"), torch.float32)
    mixer(u, "mmu", other.conv[0], other.ssm[0])
    half = c.nheads // 2
    assert not torch.allclose(other.ssm[0, :, :half], state.ssm[0, :, :half], rtol=1e-2)
    assert torch.equal(other.ssm[0, :, half:], state.ssm[0, :, half:])


def test_the_residual_stays_float32_in_a_bfloat16_model() -> None:
    block = seeded(config(), Block).bfloat16()
    residual = inputs(5) * 1000 + 0.123  # bfloat16 would lose the mixer's small part
    out = block(residual, "mmu")
    assert out.dtype == torch.float32
    small = block.mixer(block.norm(residual), "mmu")
    assert small.dtype == torch.bfloat16
    assert torch.equal(out, residual + small.float())


def test_step_sizes_and_memory_are_float32_in_a_bfloat16_model() -> None:
    mixer = seeded(config()).bfloat16()
    z, x, B, _, dt, history = mixer.before_scan(inputs(5).bfloat16(), "mmu", None)
    assert dt.dtype == torch.float32
    assert {t.dtype for t in (z, x, B, history)} == {torch.bfloat16}
    assert bool((dt > 0).all())


def test_rms_norm_computes_in_float32_and_returns_the_weights_dtype() -> None:
    norm = RMSNorm(8, 1e-5).bfloat16()
    x = torch.full((1, 8), 300.0, dtype=torch.float16)  # its square overflows float16
    out = norm(x)
    assert out.dtype == torch.bfloat16
    assert_close("norm", torch.ones(1, 8), out, 1e-2)


def test_rms_norm_adds_eps_to_the_mean_square() -> None:
    x = torch.full((1, 4), 1e-3, dtype=torch.float64)
    assert_close("norm", x / (1e-6 + 1e-5) ** 0.5, RMSNorm(4, 1e-5).double()(x), 1e-9)


def test_starting_values_are_the_papers() -> None:
    mixer = seeded(Mamba2Config(d_model=512, n_layer=1, headdim=2, d_state=4))
    dt, A = F.softplus(mixer.dt_bias), mixer.A_log.exp()
    assert float(dt.min()) >= 0.001 * 0.999
    assert float(dt.max()) <= 0.1 * 1.001
    # log-uniform: half below the geometric middle
    assert 0.4 < float((dt < 0.01).float().mean()) < 0.6
    assert 1 <= float(A.min()) < 2
    assert 15 < float(A.max()) <= 16
    assert torch.equal(mixer.D, torch.ones(512))


def test_deeper_stacks_start_with_smaller_branches() -> None:
    def size(layers: int) -> float:
        return float(seeded(Mamba2Config(d_model=64, n_layer=layers, headdim=16)).out_proj.weight.norm())

    assert size(1) / size(16) == pytest.approx(4.0, rel=1e-5)
