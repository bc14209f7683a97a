"""Named sizes: the published model, its smaller sister, and the bundled nano. Imports only config and errors."""

from dataclasses import replace

from omnimamba_cli.config import (
    LoRA,
    Mamba2Config,
    ModelConfig,
    SamplingConfig,
    TextConfig,
    TowerConfig,
    Vocabulary,
    VQConfig,
)
from omnimamba_cli.errors import ConfigError, nearest

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

DINOV2 = TowerConfig(
    name="vit_large_patch14_reg4_dinov2",
    width=1024,
    patches=729,
    image_size=384,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
)
SIGLIP = TowerConfig(
    name="vit_so400m_patch14_siglip_384",
    width=1152,
    patches=729,
    image_size=384,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)

NANO_TOWER = TowerConfig(
    name="convnext_atto",
    width=256,
    patches=64,
    image_size=128,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    layer=-2,
    options={"dims": [64, 128, 256, 320], "depths": [2, 2, 6, 1]},
)

PRESETS: dict[str, ModelConfig] = {
    "1.3b": ModelConfig(name="omnimamba-1.3b", towers=(DINOV2, SIGLIP)),
    "370m": ModelConfig(name="omnimamba-370m", backbone=Mamba2Config(d_model=1024), towers=(DINOV2, SIGLIP)),
    "nano": ModelConfig(
        name="nano",
        backbone=Mamba2Config(d_model=384, n_layer=12, d_state=64, chunk_size=64, lora_dropout=0.0),
        text=TextConfig(base_vocab_size=2048),
        vq=VQConfig(
            image_size=128,
            codebook_size=4096,
            z_channels=128,
            ch=32,
            ch_mult=(1, 2, 2, 4),
            num_res_blocks=1,
            norm_groups=8,
            patch_width=320,
            patch_blocks=2,
        ),
        towers=(NANO_TOWER,),
        caption_tokens=28,
        t2i_positions=289,
        mmu_positions=512,
        max_text_tokens=160,
        image_mlp_mult=2,
        projector_mult=2,
        prompt="In: {question}\nOut:",
        default_question="what is here?",
        ranking_question="describe the picture",
        caption_dropout=0.1,
        caption_sampling=SamplingConfig(max_new_tokens=64),
        image_sampling=SamplingConfig(temperature=0.05, guidance=1.5),
    ),
}


def preset(name: str) -> ModelConfig:
    """A named size: "nano", "370m" or "1.3b". Raises ConfigError naming the nearest."""
    if name not in PRESETS:
        raise ConfigError(
            f"there is no preset {name!r}; presets are {', '.join(PRESETS)}",
            hint=nearest(name, PRESETS),
        )
    return PRESETS[name]


def with_switches(config: ModelConfig, vocabulary: Vocabulary | None, lora: LoRA | None) -> ModelConfig:
    """The config with another choice of what the tasks share; None keeps the config's own.

    vocabulary "shared": one table of text rows and code rows, the embedding and head of both tasks. lora "shared": one
    pair for both tasks; "none": no pair.
    """
    backbone = config.backbone
    if lora == "none":
        backbone = replace(backbone, lora_rank=0)
    elif lora is not None:
        backbone = replace(backbone, lora_pairs=lora, lora_rank=backbone.lora_rank or Mamba2Config.lora_rank)
    return replace(config, backbone=backbone, vocabulary=vocabulary or config.vocabulary)
