"""Weights on their way to a device: each once, whatever the order they are asked for in."""

from pathlib import Path

import pytest
import torch

from omnimamba_cli.engine import storage
from omnimamba_cli.engine.safetensors_io import read_header, write_entries
from omnimamba_cli.engine.weight_file import AHEAD, WeightFile
from omnimamba_cli.errors import CheckpointError

NAMES = [f"layers.{i}.weight" for i in range(3 * AHEAD)]
DEVICES = ["cpu", "meta", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=["fp16", "int8"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    rng = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(5, 4 + i, generator=rng) for i, name in enumerate(NAMES)}
    file = tmp_path / "model.safetensors"
    write_entries(file, storage.entries(tensors, request.param), {"storage": request.param})
    return file


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("order", [NAMES, NAMES[::-1], NAMES[::2] + NAMES[1::2]], ids=["planned", "back", "mixed"])
def test_weights_are_those_of_the_file(path: Path, device: str, order: list[str]) -> None:
    header = read_header(path)
    with WeightFile(path, header, torch.device("cpu"), NAMES) as file:
        want = {name: file.weight(name, torch.float32) for name in NAMES}
    with WeightFile(path, header, torch.device(device), NAMES) as file:
        got = {name: file.weight(name, torch.float32) for name in order}
        assert not file._coming
    for name, tensor in got.items():
        assert tensor.device.type == device
        assert tensor.dtype == torch.float32
        assert tensor.shape == want[name].shape
        if device != "meta":
            assert torch.equal(tensor.cpu(), want[name])


def test_so_many_and_no_more_wait_on_the_device(path: Path) -> None:
    header = read_header(path)
    with WeightFile(path, header, torch.device("meta"), NAMES) as file:
        file.weight(NAMES[0], None)
        assert 0 < len(file._coming) < AHEAD + 1


def test_a_file_that_is_cut_off_while_it_is_read_is_named(path: Path) -> None:
    header = read_header(path)
    with WeightFile(path, header, torch.device("meta"), NAMES) as file:
        path.write_bytes(path.read_bytes()[: header.data_start + 40])
        with pytest.raises(CheckpointError, match=r"model\.safetensors was cut off"):
            [file.weight(name, None) for name in NAMES]
