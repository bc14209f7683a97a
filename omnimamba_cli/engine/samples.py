"""Two contact sheets of held-out samples while a model trains: what it says of pictures, and what it draws."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from omnimamba_cli.data.codes import DrawnCodes
from omnimamba_cli.data.images import pixels_to_image
from omnimamba_cli.data.sequences import mmu_middle, mmu_prefix
from omnimamba_cli.data.talks import Conversations, Talk
from omnimamba_cli.engine import decode
from omnimamba_cli.engine.safetensors_io import partial
from omnimamba_cli.engine.sheets import grid_sheet
from omnimamba_cli.engine.starting import Start, fill
from omnimamba_cli.model.lora import merged
from omnimamba_cli.model.omnimamba import OmniMamba
from omnimamba_cli.model.vq import VQModel

COUNT = 8  # samples on a sheet


@torch.inference_mode()
def caption_sheet(start: Start, talks: Conversations, chosen: np.ndarray) -> Image.Image | None:
    """Pictures with the question, the answer that is wanted and the one that the model gives; None without pictures."""
    keys = list(zip(range(len(chosen)), chosen.tolist(), strict=True))[: 4 * COUNT]
    shown = [talk for talk in map(talks.__getitem__, keys) if isinstance(talk, Talk) and talk.pixels is not None]
    shown = shown[:COUNT]
    if not shown:
        return None
    model = merged(start.model, "mmu").eval()
    pictures, labels = [], []
    for talk in shown:
        assert talk.pixels is not None
        pictures.append(Image.fromarray(talk.pixels.permute(1, 2, 0).numpy()))
        labels.append(_label(start, model, talk))
    return grid_sheet(pictures, labels)


def _label(start: Start, model: OmniMamba, talk: Talk) -> str:
    """The first question and answer of a sample, and what the model answers."""
    config, tokenizer, device = start.config, start.tokenizer, model.device
    first = talk.targets.index(True)
    end = next((i for i in range(first, len(talk.ids)) if not talk.targets[i]), len(talk.ids))
    assert start.towers is not None
    assert talk.pixels is not None
    towers = start.towers.eval()
    patches = model.embed_patches(towers(talk.pixels[None].to(device).float() / 255))
    lead, rest = (
        model.embed_text(torch.tensor([ids], device=device))
        for ids in (mmu_prefix(config), [*mmu_middle(config), *talk.ids[:first]])
    )
    room = min(
        config.caption_sampling.max_new_tokens, config.mmu_positions - lead.shape[1] - config.patches - rest.shape[1]
    )
    prefix = torch.cat([lead, patches, rest], dim=1)
    steps = decode.decode_text(model, prefix, config.caption_sampling, steps=room, seeds=[0])
    said = tokenizer.decode([token for step in steps for _, token in step]).strip()
    asked = tokenizer.decode(talk.ids[:first]).strip()
    wanted = tokenizer.decode(talk.ids[first:end]).strip()
    return "\n".join([*([asked] if asked else []), f"wanted: {wanted}", f"said: {said}"])


@torch.inference_mode()
def drawn_sheet(start: Start, drawings: DrawnCodes, chosen: np.ndarray) -> Image.Image | None:
    """Wanted pictures, each with its caption and the drawn one beside it; None without an image tokenizer."""
    path = start.copies.get("vq.safetensors")
    if path is None:
        return None
    config, device = start.config, start.model.device
    rows = chosen[:COUNT]
    prefix, wanted = drawings.rows(np.arange(len(rows)), rows)
    captions = [start.tokenizer.decode(ids).strip() or "(no caption)" for ids in prefix.tolist()]
    model = merged(start.model, "t2i").eval()
    # without guidance: how strong it should be is decided for the finished model
    sampling = replace(config.image_sampling, guidance=1.0, candidates=1)
    codes = decode.decode_image(model, prefix.to(device), sampling, seeds=list(range(len(rows))))
    vq = VQModel(config.vq)
    fill(vq, path)
    vq = vq.to(device).eval()
    pictures, labels = [], []
    for caption, left, right in zip(captions, wanted.to(device), codes, strict=True):
        pictures += [pixels_to_image(vq.decode(row[None].long())[0]) for row in (left, right)]
        labels += [f"wanted: {caption}", "drawn"]
    return grid_sheet(pictures, labels, columns=8)


def save_sheet(folder: Path, name: str, step: int, sheet: Image.Image) -> Path:
    """FOLDER/NAME-NNNNNN.png, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{step:06d}.png"
    with partial(path) as temporary:
        sheet.save(temporary, format="PNG")
    return path
