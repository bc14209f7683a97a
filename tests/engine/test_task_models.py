"""The model of one task, read straight from its file."""

import shutil
from pathlib import Path

import pytest
import torch

from omnimamba_cli.config import TASKS, ModelConfig, Task
from omnimamba_cli.engine import checkpoint, task_models
from omnimamba_cli.engine.checkpoint import ModelFiles, load_directory, save_directory
from omnimamba_cli.engine.task_models import load_for_task
from omnimamba_cli.errors import CheckpointError
from omnimamba_cli.model.lora import merged
from omnimamba_cli.model.omnimamba import OmniMamba

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tiny_config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose LoRA pairs change something."""
    model = OmniMamba(tiny_config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    directory = tmp_path_factory.mktemp("models") / "trained"
    save_directory(directory, ModelFiles(tiny_config, model=model))
    return directory


def load(directory: Path, task: Task, **options) -> OmniMamba:  # type: ignore[no-untyped-def]
    return load_for_task(directory, task, **{"device": CPU, "dtype": torch.float32, **options})


@pytest.mark.parametrize("storage", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("task", TASKS)
def test_it_is_the_whole_model_with_one_task_folded_in(
    trained: Path, tiny_config: ModelConfig, tmp_path: Path, task: Task, storage: checkpoint.Storage
) -> None:
    save_directory(tmp_path / "m", load_directory(trained, parts=("model",)), storage=storage)
    whole = load_directory(tmp_path / "m", dtype=torch.float32, parts=("model",)).model
    assert whole is not None
    want = merged(whole, task).state_dict()
    got = load(tmp_path / "m", task).state_dict()
    assert got.keys() < want.keys()
    for name, tensor in got.items():
        torch.testing.assert_close(tensor, want[name], rtol=0, atol=1e-6)
    assert not any(tensor.is_meta for tensor in got.values())


@pytest.mark.parametrize("task", TASKS)
def test_it_runs_its_task_without_the_others_parts(trained: Path, tiny_config: ModelConfig, task: Task) -> None:
    model = load(trained, task)
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        if task == "mmu":
            patches = torch.zeros(1, 2, tiny_config.vision_dim)
            x = torch.cat([model.embed_text(ids), model.embed_patches(patches)], dim=1)
        else:
            x = torch.cat([model.embed_caption(ids), model.embed_codes(ids)], dim=1)
        assert model.logits(model(x, task), task).isfinite().all()
    for name in task_models.OTHERS[task]:
        assert not hasattr(model, name)


def test_both_tasks_share_all_but_what_is_folded(trained: Path, tiny_config: ModelConfig) -> None:
    first = load(trained, "mmu")
    mmu, t2i = first.state_dict(), load(trained, "t2i", other=first).state_dict()
    for name in mmu.keys() & t2i.keys():
        assert (mmu[name].data_ptr() == t2i[name].data_ptr()) is not name.endswith(task_models.FOLDED), name


def test_the_files_tensors_stay_as_they_are(trained: Path, tiny_config: ModelConfig) -> None:
    before = (trained / "model.safetensors").read_bytes()
    model = load(trained, "mmu", dtype=torch.bfloat16)
    assert {str(p.dtype) for n, p in model.named_parameters() if not n.endswith(("A_log", "dt_bias", ".D"))} == {
        "torch.bfloat16"
    }
    assert model.layers[0].mixer.A_log.dtype == torch.float32
    load(trained, "t2i")
    assert (trained / "model.safetensors").read_bytes() == before


def test_a_part_that_the_task_does_not_need_is_checked_all_the_same(
    trained: Path, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    directory = shutil.copytree(trained, tmp_path / "m")
    tensors = load_file(directory / "model.safetensors")
    del tensors["image_mlp.0.bias"]
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"image_mlp\.0\.bias is missing"):
        load(directory, "mmu")
