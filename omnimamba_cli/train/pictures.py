"""The image tokenizer (VQ) as a job for the loop: losses, dead codes, usage, and sheets of reconstructions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from omnimamba_cli.config import BAD_SHARE
from omnimamba_cli.data.batches import PictureBatch, collate_pictures
from omnimamba_cli.data.images import pixels_to_image
from omnimamba_cli.data.mixing import Order, Sampler, Split, loader
from omnimamba_cli.data.pictures import Pictures
from omnimamba_cli.data.resident import ResidentPictures
from omnimamba_cli.model.vq import VQModel
from omnimamba_cli.train.events import Event, Sheet
from omnimamba_cli.train.optimiser import Average
from omnimamba_cli.train.skipping import Skipping

CODEBOOK = "model.quantize.embedding.weight"
REVIVE_UNTIL = 0.8  # share of the run after which dead codes are left alone


@dataclass(frozen=True, kw_only=True)
class VQLosses:
    """Weights of the parts of the loss; pixels run from -1 to 1."""

    l1: float = 1.0
    mse: float = 0.5
    edges: float = 1.0  # L1 of finite differences: keeps outlines where L1 alone blurs them
    codebook: float = 1.0
    commit: float = 0.25


@dataclass(frozen=True)
class Pixels:
    """A micro-batch on the device: pixels uint8 (b 3 s s); tokens is its number of codes."""

    pixels: Tensor
    tokens: int


class VQObjective(nn.Module):
    """The image tokenizer with its training loss."""

    def __init__(self, model: VQModel, losses: VQLosses) -> None:
        super().__init__()
        self.model, self.losses = model, losses
        size = model.config.codebook_size
        self.register_buffer("used", torch.zeros(size), persistent=False)  # since the last report
        self.register_buffer("alive", torch.zeros(size), persistent=False)  # since the last revival
        self.register_buffer("skipped", torch.zeros((), dtype=torch.int64), persistent=False)  # bad pictures so far

    def forward(self, micro: Pixels, totals: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weighted means over the step's pictures: "loss" and its parts."""
        if not len(micro.pixels):
            return {"loss": torch.stack([p.sum() * 0.0 for p in self.parameters()]).sum()}
        pixels = scaled(micro.pixels)
        made, codes, quantizer = self.model(pixels)
        error = made.float() - pixels
        parts = {
            "l1": error.abs().mean(),
            "mse": error.square().mean(),
            "edges": (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()) / 2,
            "codebook": quantizer["codebook"],
            "commit": quantizer["commit"],
        }
        share = len(pixels) / totals["pictures"]
        parts = {name: share * value for name, value in parts.items()}
        ones = torch.ones_like(codes, dtype=self.used.dtype).flatten()
        for counts in (self.used, self.alive):
            counts.index_add_(0, codes.flatten(), ones)
        loss = torch.stack([getattr(self.losses, name) * value for name, value in parts.items()]).sum()
        return {"loss": loss, **parts}


def scaled(pixels: Tensor) -> Tensor:
    """uint8 to float32 in [-1,1], channels last."""
    return (pixels.float() / 127.5 - 1).to(memory_format=torch.channels_last)


class VQJob:
    """Trains a VQObjective on pictures: a Job for the loop."""

    def __init__(
        self,
        module: VQObjective,
        pictures: Pictures | ResidentPictures,
        *,
        device: torch.device,
        seed: int,
        rows: int,
        workers: int = 0,
        accumulate: int = 1,
        revive_every: int = 100,
        sheet_every: int = 1000,
        autocast: torch.dtype | None = None,
        max_bad_share: float = BAD_SHARE,
    ) -> None:
        self.module, self.pictures, self.device, self.seed = module, pictures, device, seed
        self.split, self.workers, self.accumulate = Split(rows, accumulate), workers, accumulate
        self.revive_every, self.sheet_every, self.autocast = revive_every, sheet_every, autocast
        self.skipping = Skipping(max_bad_share, len(pictures))
        self.recent: Tensor | None = None  # pictures of the last micro-batch

    def batches(self, step: int) -> Iterator[Sequence[Pixels]]:
        """Micro-batches of each step on the device."""
        order = Order(len(self.pictures), self.seed)
        if isinstance(self.pictures, ResidentPictures):
            stream = self.pictures.batches(order, self.split, step)
        else:
            keys, pin = Sampler(order, self.split, step), self.device.type == "cuda"
            stream = iter(loader(self.pictures, keys, collate=collate_pictures, workers=self.workers, pin=pin))
        while True:
            yield [self._micro(next(stream)) for _ in range(self.accumulate)]

    def _micro(self, batch: PictureBatch) -> Pixels:
        if new := self.skipping.count(batch.samples, batch.bad):
            self.module.skipped += new
        pixels = batch.pixels.to(self.device, non_blocking=True)
        if len(pixels):
            self.recent = pixels
        return Pixels(pixels, tokens=len(pixels) * self.module.model.config.codes)

    def totals(self, micros: Sequence[Pixels]) -> dict[str, int]:
        """Number of pictures of the step."""
        return {"pictures": sum(len(m.pixels) for m in micros)}

    def after_step(self, step: int, progress: float, average: Average) -> list[Event]:
        """Replaces dead codes now and then, unless the run is nearly over; now and then makes a sheet."""
        done = step + 1
        if self.revive_every and done % self.revive_every == 0:
            if progress <= REVIVE_UNTIL:
                self._revive(average)
            self.module.alive.zero_()
        events = self.skipping.said()
        if (self.sheet_every and done % self.sheet_every == 0) or progress >= 1:
            events.append(Sheet(image=self.sheet(average), step=done))
        return events

    @torch.no_grad()
    def _revive(self, average: Average) -> None:
        """Replace entries that no picture used by random features of the last batch, without waiting for the device."""
        if self.recent is None:
            return
        model = self.module.model
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            found = model.features(scaled(self.recent)).flatten(0, 2)  # (m code_dim)
        table = model.quantize.embedding.weight
        drawn = found[torch.randint(len(found), (len(table),), device=self.device)].to(table.dtype)
        dead = (self.module.alive == 0)[:, None]
        table.copy_(torch.where(dead, drawn, table))
        if CODEBOOK in average.values:
            values = average.values[CODEBOOK]
            values.copy_(torch.where(dead, drawn, values))

    @torch.no_grad()
    def sheet(self, average: Average, count: int = 16) -> Image.Image:
        """Pictures of the last batch over their reconstructions, by the averaged weights."""
        assert self.recent is not None
        pixels = scaled(self.recent[:count])
        average.swap()
        model = self.module.model
        made = model.decode(model.encode(pixels))
        average.swap()
        rows = [torch.cat(list(t.float().cpu()), dim=2) for t in (pixels, made)]
        return pixels_to_image(torch.cat(rows, dim=1))

    def report(self) -> dict[str, float]:
        """Share of the codebook used since the last report ("usage"), and the perplexity of that use."""
        counts = self.module.used
        share = counts / counts.sum().clamp(min=1)
        values = {
            "usage": float((counts > 0).float().mean()),
            "perplexity": float(torch.exp(-(share * share.clamp(min=1e-12).log()).sum())),
        }
        counts.zero_()
        if skipped := int(self.module.skipped):
            values["skipped"] = float(skipped)
        return values
