"""The published files at full size with random weights: names, shapes, number formats and lengths as published.

`python -m tests.full_size DIR` writes 6.4 GB; `omnimamba download --from DIR --dir MODEL` makes a model of them.
"""

import os
import struct
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from omnimamba_cli.data.tokenizer import END_OF_TEXT
from omnimamba_cli.engine.published import OMNIMAMBA_1_3B
from omnimamba_cli.model.convert import HEADS, published_names
from omnimamba_cli.model.vq import VQModel
from omnimamba_cli.presets import DINOV2, PRESETS, SIGLIP

CONFIG = PRESETS["1.3b"]
NOISE = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))  # repeated: drawing billions takes minutes


def noise(shape: tuple[int, ...], std: float, dtype: torch.dtype) -> torch.Tensor:
    """Numbers that spread like normal ones."""
    count = torch.Size(shape).numel()
    block = (NOISE * std).to(dtype)
    return block.repeat(-(-count // len(block)))[:count].reshape(shape).clone()


def weight(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor that does to a signal about what a trained one does: nothing grows, nothing dies."""
    if name.endswith("A_log"):
        return torch.linspace(1, 16, shape[0]).log().to(dtype)
    if name.endswith("dt_bias"):
        return torch.full(shape, -4.0, dtype=dtype)
    if name.endswith(".D") or (len(shape) == 1 and name.endswith("weight")):
        return torch.ones(shape, dtype=dtype)
    return noise(shape, 0.02, dtype)


def language_model() -> dict[str, torch.Tensor]:
    """OmniMamba-1.3b.pth: fp16, heads stored again."""
    shapes = published_names(CONFIG)
    tensors = {name: weight(name, shape, torch.float16) for name, shape in shapes.items() if name not in HEADS}
    return tensors | {head: tensors[embedding].clone() for head, embedding in HEADS.items()}


def tower(name: str) -> dict[str, torch.Tensor]:
    """An encoder as timm publishes it: all blocks, at its own picture size, fp32."""
    import timm

    with torch.device("meta"):
        shapes = {n: tuple(t.shape) for n, t in timm.create_model(name, num_classes=0).state_dict().items()}
    return {n: weight(n, shape, torch.float32) for n, shape in shapes.items()}


def image_tokenizer() -> Mapping[str, object]:
    """vq_ds16_t2i.pt."""
    with torch.device("meta"):
        shapes = {n: tuple(t.shape) for n, t in VQModel(CONFIG.vq).state_dict().items()}
    tensors = {n: weight(n, shape, torch.float32) for n, shape in shapes.items()}
    return {"model": tensors | {"quantize.codebook_used": torch.zeros(65_536)}}


def text_tokenizer() -> Tokenizer:
    """A byte-level BPE of as many ids as GPT-NeoX's: every pair of bytes is a word until they are enough."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    count = CONFIG.text.base_vocab_size - 1 - len(letters)
    pairs = [(a, b) for a in letters for b in letters][:count]
    vocab = {token: i for i, token in enumerate([END_OF_TEXT, *letters, *(a + b for a, b in pairs)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def write(folder: Path) -> dict[str, Path]:
    """All five files under folder/ORG/NAME/FILE, by that key."""
    paths = {file.key: folder / file.key for file in OMNIMAMBA_1_3B.files}
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    main, words, dino, siglip, vq = paths.values()
    torch.save(language_model(), main)
    text_tokenizer().save(str(words))
    for path, config in ((dino, DINOV2), (siglip, SIGLIP)):
        save_file(tower(config.name), path)
    torch.save(image_tokenizer(), vq)
    stated = next(file.size_bytes for file in OMNIMAMBA_1_3B.files if file.key.endswith(vq.name))
    assert stated is not None
    with vq.open("r+b") as file:  # the table knows this file's length: a comment at the archive's end fills it up
        file.seek(-2, os.SEEK_END)
        rest = stated - vq.stat().st_size
        file.write(struct.pack("<H", rest) + b" " * rest)
    return paths


if __name__ == "__main__":
    for path in write(Path(sys.argv[1])).values():
        sys.stderr.write(f"{path.stat().st_size:>13,} {path}\n")
