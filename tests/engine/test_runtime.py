"""Devices and dtypes: the choice, its reason, and what is refused."""

import pytest
import torch

from omnimamba_cli.config import ModelConfig
from omnimamba_cli.engine import runtime
from omnimamba_cli.errors import DeviceError
from omnimamba_cli.presets import PRESETS

NANO, LARGE = PRESETS["nano"], PRESETS["1.3b"]


def machine(monkeypatch: pytest.MonkeyPatch, *, cuda: int = 0, mps: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "want"), [(0, False, "cpu"), (2, False, "cuda:0"), (0, True, "mps"), (1, True, "cuda:0")]
)
def test_auto_takes_the_fastest_device(monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool, want: str) -> None:
    machine(monkeypatch, cuda=cuda, mps=mps)
    device, reason = runtime.pick_device("auto")
    assert device == torch.device(want)
    assert reason


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:1", "mps"])
def test_a_device_that_is_there_is_taken(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    machine(monkeypatch, cuda=2, mps=True)
    assert runtime.pick_device(name) == (torch.device(name), "asked for")


@pytest.mark.parametrize(
    ("name", "cuda", "message"),
    [
        ("cuda", 0, "cuda was asked for, this machine has 0 CUDA devices"),
        ("cuda:2", 2, "cuda:2 was asked for, this machine has 2 CUDA devices"),
        ("mps", 1, "no Apple GPU"),
        ("gpu", 1, "'gpu' is no device"),
        ("", 1, "'' is no device"),
        ("meta", 1, "'meta' is not supported"),
    ],
)
def test_a_device_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, cuda: int, message: str
) -> None:
    machine(monkeypatch, cuda=cuda)
    with pytest.raises(DeviceError, match=message) as caught:
        runtime.pick_device(name)
    assert caught.value.hint
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    ("device", "config", "want"),
    [
        ("cpu", NANO, torch.float32),
        ("cuda", NANO, torch.float16),
        ("cuda", LARGE, torch.float16),
        ("mps", NANO, torch.float16),
    ],
)
def test_auto_dtype(monkeypatch: pytest.MonkeyPatch, device: str, config: ModelConfig, want: torch.dtype) -> None:
    machine(monkeypatch, cuda=1)
    assert runtime.pick_dtype("auto", torch.device(device), config)[0] == want


@pytest.mark.parametrize(
    ("capability", "want"), [("AVX2", torch.float16), ("AVX512", torch.float16), ("DEFAULT", torch.bfloat16)]
)
def test_a_large_model_on_a_cpu_has_the_half_that_is_faster_there(
    monkeypatch: pytest.MonkeyPatch, capability: str, want: torch.dtype
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert runtime.pick_dtype("auto", torch.device("cpu"), LARGE)[0] == want


@pytest.mark.parametrize("name", ["fp32", "fp16", "bf16"])
def test_a_named_dtype_is_taken_anywhere(name: str) -> None:
    assert runtime.pick_dtype(name, torch.device("cpu"), LARGE) == (runtime.DTYPES[name], "asked for")


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(DeviceError, match="'int8' is no dtype"):
        runtime.pick_dtype("int8", torch.device("cpu"), NANO)


def test_the_parameter_count_is_about_right() -> None:
    assert runtime.parameter_count(LARGE) == pytest.approx(1.40e9, rel=0.05)
    assert runtime.parameter_count(NANO) < runtime.LARGE
