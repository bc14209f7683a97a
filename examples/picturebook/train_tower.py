"""Train nano's image encoder: name what is in every cell of a scene, then keep the features and drop the names.

The tower sees scenes of the training pictures only, composed and disturbed on its device as it goes, many things as
other hands would draw them; never Streamline, never a held-out drawing.
Run: python examples/picturebook/train_tower.py DATA -o DIR [--minutes 5]
"""

import argparse
import dataclasses
import json
import math
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from concepts import load_concepts
from fetch import SETS
from omnimamba_cli.engine.starting import fill
from omnimamba_cli.model.vision import VisionTowers
from omnimamba_cli.presets import preset
from palette import COLOUR_NAMES
from pictures import Pictures
from splits import held_out_picture
from tower import DeviceScenes, Labels

HEADS_FIRST = 150  # steps in which fresh heads learn from a trained tower that stands still
WARMUP = 300  # steps of a rising rate


def disturb(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels (b 3 s s) in [0,1], drawn differently: bent, recoloured, outlined, blurred, grainy.

    Returns them and which rows (b, bool) kept their colours. A style never seen is only bearable for an encoder
    that cannot lean on the line, shading and palette of the styles it knows.
    """
    b, _, s, _ = pixels.shape
    device = pixels.device

    def some(share: float) -> Tensor:
        return (torch.rand(b, device=device) < share)[:, None, None, None]

    bend = torch.randn(b, 2, 5, 5, device=device) * (torch.rand(b, 1, 1, 1, device=device) * 0.07)
    bend = F.interpolate(bend, size=(s, s), mode="bicubic", align_corners=True)
    angle = (torch.rand(b, device=device) - 0.5) * 0.35  # radians
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    turn = torch.stack([cos, -sin, zero, sin, cos, zero], 1).view(b, 2, 3)
    grid = F.affine_grid(turn, [b, 3, s, s], align_corners=False) + bend.movedim(1, -1)
    bent = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    pixels = torch.where(some(0.7), bent, pixels)

    gray = pixels.mean(1, keepdim=True)
    edges = (F.max_pool2d(gray, 3, 1, 1) + F.max_pool2d(-gray, 3, 1, 1)).clamp(0, 1)
    line = 1 - (edges * 4 * torch.rand(b, 1, 1, 1, device=device)).clamp(max=1)
    pixels = torch.where(some(0.3), pixels * line, pixels)

    recolour = some(0.25)
    mix = torch.eye(3, device=device) + 0.45 * torch.randn(b, 3, 3, device=device)
    mix = mix / mix.sum(2, keepdim=True).clamp_min(0.3)
    mixed = torch.einsum("bij,bjhw->bihw", mix, pixels)
    mixed = torch.where(some(0.35), gray, mixed)
    pixels = torch.where(recolour, mixed, pixels)

    contrast = 1 + 0.5 * (torch.rand(b, 1, 1, 1, device=device) - 0.5)
    shift = 0.2 * (torch.rand(b, 1, 1, 1, device=device) - 0.5)
    pixels = torch.where(some(0.5), (pixels - 0.5) * contrast + 0.5 + shift, pixels)
    blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, 1)
    pixels = torch.where(some(0.2), blurred, pixels)
    pixels = torch.where(some(0.2), pixels + 0.06 * torch.randn_like(pixels), pixels)
    return pixels.clamp(0, 1), ~recolour.view(b)


class Heads(nn.Module):
    """Names for features: per cell the concept, style and tint; per picture the ground. Dropped after training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.concept = nn.Linear(width, len(load_concepts()) + 1)  # the last one: bare ground
        self.style = nn.Linear(width, len(SETS))
        self.tint = nn.Linear(width, len(COLOUR_NAMES))
        self.ground = nn.Linear(width, len(COLOUR_NAMES))

    def loss(self, patches: Tensor, labels: Labels, coloured: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted sum of the cross-entropies of patches (b n width), and the share of inked cells named right."""
        x = self.norm(patches)
        concept = labels.concept.flatten(1)  # (b n)
        bare = concept < 0
        names = self.concept(x).float()
        each = F.cross_entropy(
            names.flatten(0, 1),
            concept.where(~bare, names.shape[-1] - 1).flatten(),
            reduction="none",
            label_smoothing=0.1,
        ).view_as(concept)
        weight = torch.where(bare, 0.2, 1.0)
        loss = (each * weight).sum() / weight.sum()
        style = labels.style.flatten()
        tint = labels.tint.flatten(1).masked_fill(~coloured[:, None], -1).flatten()
        ground = labels.ground.masked_fill(~coloured, -1)
        for logits, target, share in (
            (self.style(x).flatten(0, 1), style, 0.1),
            (self.tint(x).flatten(0, 1), tint, 0.3),
            (self.ground(x.mean(1)), ground, 0.3),
        ):
            known = (target >= 0).sum().clamp_min(1)
            loss = loss + share * F.cross_entropy(logits.float(), target, ignore_index=-1, reduction="sum") / known
        right = ((names.argmax(-1) == concept) & ~bare).sum() / (~bare).sum()
        return loss, right


@torch.no_grad()
def name_pictures(towers: VisionTowers, heads: Heads, pictures: Pictures, style: str, device: torch.device) -> float:
    """Share of a style's pictures (of held-out drawings only, in Twemoji) named right, alone on white."""
    chosen = [
        i
        for i, (concept, its_style) in enumerate(pictures.listed)
        if its_style == style and (style != "twemoji" or held_out_picture(concept, style))
    ]
    index = {concept.id: concept.index for concept in load_concepts()}
    size = preset("nano").vision_image_size
    right = 0
    for start in range(0, len(chosen), 256):
        part = chosen[start : start + 256]
        rgba = torch.stack([torch.from_numpy(pictures.rgba[i].copy()) for i in part]).to(device).float() / 255
        rgba = F.interpolate(rgba.permute(0, 3, 1, 2), size=size * 13 // 16, mode="area")
        margin = (size - rgba.shape[-1]) // 2
        rgba = F.pad(rgba, [margin, size - rgba.shape[-1] - margin] * 2)
        names = heads.concept(heads.norm(towers(rgba[:, :3] * rgba[:, 3:] + 1 - rgba[:, 3:]).float())).softmax(-1)
        truth = torch.tensor([index[pictures.listed[i][0]] for i in part], device=device)
        right += int((names[..., :-1].sum(1).argmax(-1) == truth).sum())
    return right / max(len(chosen), 1)


@torch.no_grad()
def named(
    towers: VisionTowers, heads: Heads, averaged: list[Tensor], pictures: Pictures, device: torch.device
) -> dict[str, float]:
    """Shares of `name_pictures` for all styles with the averaged weights; the weights in training stay."""
    parameters = [*towers.parameters(), *heads.parameters()]
    kept = [p.clone() for p in parameters]
    torch._foreach_copy_(parameters, averaged)
    towers.eval()
    shares = {style: round(name_pictures(towers, heads, pictures, style, device), 4) for style in SETS}
    towers.train()
    torch._foreach_copy_(parameters, kept)
    return shares


def rates(step: int, progress: float, peak: float, started: bool) -> tuple[float, float]:
    """Learning rates of the tower and of the heads; `started`: from an earlier run's tower.

    Gradients through heads that know nothing yet would wreck what that tower knows. So it stands still until they
    have learned to read it, which takes seconds, and then warms up as the heads did.
    """
    fall = peak * 0.5 * (1 + math.cos(math.pi * progress))
    wait = HEADS_FIRST if started else 0
    return fall * min(1.0, max(0, step + 1 - wait) / WARMUP), fall * min(1.0, (step + 1) / WARMUP)


def train(args: argparse.Namespace) -> None:
    """Learning rate and length follow the clock: the run ends when its minutes are over."""
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    config = preset("nano")
    # blocks left out at random: no parameters, so the weights are those of the same tower without it
    configs = tuple(
        dataclasses.replace(one, options={**one.options, "drop_path_rate": args.drop_path}) for one in config.towers
    )
    towers = VisionTowers(configs).to(device, memory_format=torch.channels_last).train().requires_grad_(True)
    heads = Heads(config.vision_dim).to(device)
    if args.init is not None:
        fill(towers, args.init)
    parameters = [*towers.parameters(), *heads.parameters()]
    averaged = [p.detach().clone() for p in parameters]
    grid = math.isqrt(config.patches)
    pictures = Pictures.open(args.data)
    scenes = DeviceScenes(pictures, device, size_px=config.vision_image_size, grid=grid)
    look = torch.compile(towers) if args.compile else towers
    groups = [{"params": list(part.parameters())} for part in (towers, heads)]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, weight_decay=0.05, fused=device.type == "cuda")
    begun, step, seen, halfway = time.perf_counter(), 0, 0, False
    while True:
        progress = (time.perf_counter() - begun) / (60 * args.minutes)
        if progress >= 1:
            break
        if progress >= 0.5 and not halfway:
            halfway = True
            print(json.dumps({"step": step, "named": named(towers, heads, averaged, pictures, device)}), flush=True)
        for group, rate in zip(
            optimizer.param_groups, rates(step, progress, args.lr, args.init is not None), strict=True
        ):
            group["lr"] = rate
        pixels, labels = scenes.sample(args.batch)
        pixels, coloured = disturb(pixels)
        with torch.autocast(device.type, torch.bfloat16):
            loss, right = heads.loss(look(pixels.to(memory_format=torch.channels_last)), labels, coloured)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        torch._foreach_lerp_(averaged, [p.detach() for p in parameters], max(1e-3, 1 / (step + 1)))
        step, seen = step + 1, seen + len(pixels)
        if step % args.log_every == 0:
            line = {"step": step, "loss": float(loss.detach()), "right": float(right), "scenes": seen}
            print(json.dumps({**line, "seconds": round(time.perf_counter() - begun, 1)}), flush=True)
    scores = named(towers, heads, averaged, pictures, device)
    with torch.no_grad():
        torch._foreach_copy_(parameters, averaged)
    args.out.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous().half().cpu() for k, v in towers.state_dict().items()}, args.out / "vision.safetensors")
    (args.out / "tower.json").write_text(json.dumps({"steps": step, "scenes": seen, "named": scores}, indent=1) + "\n")
    print(json.dumps({"named": scores}), flush=True)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with the rendered pictures (make.py DATA prepare)")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="vision.safetensors of an earlier run to start from")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--drop-path", type=float, default=0.05, help="share of the deepest block's rows left out")
    parser.add_argument("--compile", action="store_true", help="fuse operations first: pays from a minute on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-every", type=int, default=100)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
