"""A small random model that takes no time: what it says is noise, how it behaves is not."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.loopback_hub import Hub

# before torch is imported: on tiny tensors a second thread only waits, and on a busy machine it waits long
os.environ.setdefault("OMP_NUM_THREADS", "1")

from omnimamba_cli.config import Mamba2Config, ModelConfig, SamplingConfig, TextConfig, TowerConfig, VQConfig

TINY = ModelConfig(
    name="tiny",
    backbone=Mamba2Config(d_model=64, n_layer=2, d_state=16, headdim=32, chunk_size=16, lora_rank=4),
    text=TextConfig(base_vocab_size=320),
    vq=VQConfig(image_size=32, codebook_size=64, z_channels=32, ch=32, ch_mult=(1, 2, 2), num_res_blocks=1),
    towers=(
        TowerConfig(
            name="convnext_atto",
            width=32,
            patches=16,
            image_size=64,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            options={"dims": [16, 32, 32, 32], "depths": [1, 1, 1, 1]},
        ),
    ),
    caption_tokens=12,
    t2i_positions=96,
    mmu_positions=160,
    max_text_tokens=64,
    image_mlp_mult=2,
    projector_mult=2,
    prompt="In: {question}\nOut:",
    default_question="what is here?",
    caption_dropout=0.1,
    caption_sampling=SamplingConfig(max_new_tokens=8),
    image_sampling=SamplingConfig(temperature=1.0, guidance=2.0),
)
TEXTS = ["In: what is here?\nOut: a red fox on a blue background", "two small cats and a dog", "a green house"] * 4


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    """The sizes of tiny_model."""
    return TINY


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, tiny_config: ModelConfig) -> Path:
    """A whole model directory with random weights, the same in every run. Do not write into it."""
    import torch

    from omnimamba_cli.data.tokenizer import TextTokenizer, train_bpe
    from omnimamba_cli.engine.checkpoint import ModelFiles, save_directory
    from omnimamba_cli.model.omnimamba import OmniMamba
    from omnimamba_cli.model.vision import VisionTowers
    from omnimamba_cli.model.vq import VQModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        files = ModelFiles(
            tiny_config,
            model=OmniMamba(tiny_config),
            towers=VisionTowers(tiny_config.towers),
            vq=VQModel(tiny_config.vq),
            tokenizer=TextTokenizer(train_bpe(TEXTS, tiny_config.text.base_vocab_size), tiny_config.text),
        )
    directory = tmp_path_factory.mktemp("models") / "tiny"
    save_directory(directory, files)
    return directory


@pytest.fixture(scope="session")
def published_files(tmp_path_factory: pytest.TempPathFactory) -> "dict[str, Path]":
    """The published files in small. Do not write into them."""
    from tests.cases.published import write_files

    return write_files(tmp_path_factory.mktemp("published"))


@pytest.fixture
def loopback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published_files: "dict[str, Path]", _clean_environment: None
) -> "Iterator[Hub]":
    """A Hub on loopback that has the release "tiny", with huggingface_hub set to it and a home of its own."""
    import huggingface_hub
    from huggingface_hub import constants, file_download

    from omnimamba_cli.engine import published, remote
    from omnimamba_cli.presets import PRESETS
    from tests.cases.published import CONFIG, PLACES, RELEASE
    from tests.loopback_hub import serve

    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setitem(PRESETS, "tiny", CONFIG)
    monkeypatch.setitem(published.RELEASES, "tiny", RELEASE)
    monkeypatch.setattr(remote, "WAITS_S", (0.0,) * 4)
    with serve() as hub:
        for short, (repo, file) in PLACES.items():
            hub.add(repo, {file: published_files[short]})
        settings = {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "HF_TOKEN_PATH": str(tmp_path / "token"),
            "DOWNLOAD_CHUNK_SIZE": 4096,  # of small files a part is to be there, too
        }
        for name, value in settings.items():
            for module in (constants, file_download):  # older versions hold names of their own
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, value)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        yield hub
        getattr(huggingface_hub, "close_session", lambda: None)()  # versions before 1.0 keep no client


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on the settings of whoever runs it, and none reaches the network."""
    for name in ("MODEL", "DEVICE", "DTYPE", "SEED", "KERNELS"):
        monkeypatch.delenv(f"OMNIMAMBA_{name}", raising=False)
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMNIMAMBA_CONFIG", "")
