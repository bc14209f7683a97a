"""The published files in small: each as its authors store it, of a model that takes no time."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from omnimamba_cli.config import Mamba2Config, ModelConfig, TextConfig, TowerConfig, VQConfig
from omnimamba_cli.data.tokenizer import train_bpe
from omnimamba_cli.engine.published import PublishedFile, Release
from omnimamba_cli.model import convert as names
from omnimamba_cli.model.omnimamba import OmniMamba
from omnimamba_cli.model.vq import VQModel

TOWERS = tuple(
    TowerConfig(
        name=name, width=width, patches=9, image_size=48, mean=(0.5,) * 3, std=(0.5,) * 3,
        options={"depth": 3, "embed_dim": width, "num_heads": 2, "patch_size": 16, **more},
    )
    for name, width, more in (
        ("vit_large_patch14_reg4_dinov2", 16, {}),
        ("vit_so400m_patch14_siglip_384", 8, {"mlp_ratio": 2}),
    )
)  # fmt: skip
CONFIG = ModelConfig(
    name="tiny",
    backbone=Mamba2Config(d_model=32, n_layer=2, d_state=16, headdim=16, lora_rank=2),
    text=TextConfig(base_vocab_size=300),
    vq=VQConfig(codebook_size=64, z_channels=32, ch=32, ch_mult=(1, 1, 1, 1, 1), num_res_blocks=1),
    towers=TOWERS,
)
# two repositories hold a file of one name, as the real ones do
PLACES = {
    "main.pth": ("org/main", "OmniMamba.pth"),
    "tok.json": ("org/tokenizer", "tokenizer.json"),
    "dino": ("timm/dino", "model.safetensors"),
    "siglip": ("timm/siglip", "model.safetensors"),
    "vq.pt": ("org/vq", "vq.pt"),
}
BOTH = ("mmu", "t2i")


def _file(name: str, piece: str, tasks: tuple[str, ...], width: int = 0) -> PublishedFile:
    repo, file = PLACES[name]
    return PublishedFile(repo=repo, file=file, piece=piece, tasks=tasks, tower_width=width)  # type: ignore[arg-type]


RELEASE = Release(
    name="tiny",
    title="the published files in small",
    preset="tiny",
    files=(
        _file("main.pth", "model", BOTH),
        _file("tok.json", "tokenizer", BOTH),
        _file("dino", "vision", ("mmu",), 16),
        _file("siglip", "vision", ("mmu",), 8),
        _file("vq.pt", "vq", ("t2i",)),
    ),
)


def published() -> dict[str, torch.Tensor]:
    """The main file's tensors."""
    torch.manual_seed(0)
    state = {name: tensor.half() for name, tensor in OmniMamba(CONFIG).state_dict().items()}
    return names.to_published(state, CONFIG)


def whole_tower(config: TowerConfig, image_size: int) -> dict[str, torch.Tensor]:
    """An encoder with all its blocks."""
    import timm

    options = {**config.options, "img_size": image_size}
    return dict(timm.create_model(config.name, pretrained=False, num_classes=0, **options).state_dict())


def write_files(folder: Path) -> dict[str, Path]:
    """All of them, and a plain Mamba-2, by short names."""
    paths = {name: folder / name for name in (*PLACES, "base.bin")}
    torch.save(published(), paths["main.pth"])
    torch.manual_seed(1)
    vq = VQModel(CONFIG.vq).state_dict() | {"quantize.codebook_used": torch.zeros(8)}
    torch.save({"model": vq}, paths["vq.pt"])
    save_file(whole_tower(TOWERS[0], 64), paths["dino"])
    save_file(whole_tower(TOWERS[1], 48), paths["siglip"])
    train_bpe(["a red fox"], 300).save(str(paths["tok.json"]))
    full = {k.removeprefix("llm_backbone.mamba."): v for k, v in published().items()}
    torch.save({name: full[name] for name in names.base_names(CONFIG)}, paths["base.bin"])
    return paths
