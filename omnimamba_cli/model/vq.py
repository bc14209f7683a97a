"""The image tokenizer: LlamaGen's VQ (arXiv:2406.06525), pixels to codes and back.

Names and structure are those of the published `vq_ds16_t2i.pt`; the sizes come from VQConfig.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimamba_cli.config import VQConfig


class Norm(nn.GroupNorm):
    """GroupNorm over a map (b c h w)."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(groups, channels, eps=1e-6)


class ResBlock(nn.Module):
    """norm, SiLU, conv, twice, beside a shortcut."""

    def __init__(self, i: int, o: int, groups: int) -> None:
        super().__init__()
        self.norm1 = Norm(i, groups)
        self.conv1 = nn.Conv2d(i, o, 3, padding=1)
        self.norm2 = Norm(o, groups)
        self.conv2 = nn.Conv2d(o, o, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(i, o, 1) if i != o else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """x (b i h w) to (b o h w)."""
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return self.nin_shortcut(x) + y


class Attention(nn.Module):
    """One head of attention between all pixels of a map."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = Norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (b c h w) to the same shape."""
        n = self.norm(x)
        q, k, v = (f(n).flatten(2).mT[:, None] for f in (self.q, self.k, self.v))  # (b 1 h*w c)
        y = F.scaled_dot_product_attention(q.contiguous(), k.contiguous(), v.contiguous())
        return x + self.proj_out(y[:, 0].mT.reshape(x.shape))


class Downsample(nn.Module):
    """Half the size; padded at the right and bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """x (b c h w) to (b c h/2 w/2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the size, by nearest neighbour and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x (b c h w) to (b c 2h 2w)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The residual blocks of one resolution, each followed by attention on the coarsest."""

    def __init__(self, i: int, o: int, blocks: int, groups: int, *, attend: bool, resize: nn.Module | None) -> None:
        super().__init__()
        self.res = nn.ModuleList(ResBlock(i if j == 0 else o, o, groups) for j in range(blocks))
        self.attn = nn.ModuleList(Attention(o, groups) for _ in range(blocks if attend else 0))
        if isinstance(resize, Downsample):
            self.downsample = resize
        elif isinstance(resize, Upsample):
            self.upsample = resize
        self.resizes = resize is not None

    def forward(self, x: Tensor) -> Tensor:
        """x (b i h w) to (b o h' w')."""
        for j, res in enumerate(self.res):
            x = res(x)
            if self.attn:
                x = self.attn[j](x)
        if not self.resizes:
            return x
        return self.downsample(x) if hasattr(self, "downsample") else self.upsample(x)


def _middle(channels: int, groups: int) -> nn.Sequential:
    return nn.Sequential(
        ResBlock(channels, channels, groups), Attention(channels, groups), ResBlock(channels, channels, groups)
    )


class Encoder(nn.Module):
    """Pixels (b 3 s s) to features (b z grid grid)."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths = [config.ch * m for m in config.ch_mult]
        groups, last = config.norm_groups, len(widths) - 1
        self.conv_in = nn.Conv2d(3, config.ch, 3, padding=1)
        self.conv_blocks = nn.Sequential(
            *(
                Level(
                    widths[i - 1] if i else config.ch,
                    width,
                    config.num_res_blocks,
                    groups,
                    attend=i == last,
                    resize=None if i == last else Downsample(width),
                )
                for i, width in enumerate(widths)
            )
        )
        self.mid = _middle(widths[-1], groups)
        self.norm_out = Norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels in [-1,1]."""
        return self.conv_out(F.silu(self.norm_out(self.mid(self.conv_blocks(self.conv_in(pixels))))))


class PatchBlock(nn.Module):
    """A residual multi-layer perceptron on the features of each patch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x (b h w c) to the same shape."""
        return x + self.fc2(F.silu(self.fc1(self.norm(x))))


class PatchEncoder(nn.Module):
    """Pixels (b 3 s s) to features (b z grid grid), each from the pixels of its own patch alone.

    The norms and attention of `Encoder` let every code depend on the whole picture: the same drawing on another ground
    gets other codes nearly everywhere, and a language model must learn each pairing by itself. Here what stands on the
    grid has the same codes wherever it stands and whatever is beside it. The decoder smooths over the seams.
    """

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        width, side = config.patch_width, config.downsample
        self.conv_in = nn.Conv2d(3, width, side, stride=side)
        self.blocks = nn.Sequential(*(PatchBlock(width) for _ in range(config.patch_blocks)))
        self.norm_out = nn.LayerNorm(width)
        self.fc_out = nn.Linear(width, config.z_channels)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels in [-1,1]."""
        x = self.blocks(self.conv_in(pixels).movedim(1, -1))
        return self.fc_out(self.norm_out(x)).movedim(-1, 1)


class Decoder(nn.Module):
    """Features (b z grid grid) to pixels (b 3 s s); levels run from the coarsest."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths = [config.ch * m for m in reversed(config.ch_mult)]
        groups, last = config.norm_groups, len(widths) - 1
        self.conv_in = nn.Conv2d(config.z_channels, widths[0], 3, padding=1)
        self.mid = _middle(widths[0], groups)
        self.conv_blocks = nn.Sequential(
            *(
                Level(
                    widths[max(i - 1, 0)],
                    width,
                    config.num_res_blocks + 1,
                    groups,
                    attend=i == 0,
                    resize=None if i == last else Upsample(width),
                )
                for i, width in enumerate(widths)
            )
        )
        self.norm_out = Norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """Pixels, about in [-1,1], not clamped."""
        return self.conv_out(F.silu(self.norm_out(self.conv_blocks(self.mid(self.conv_in(z))))))


class Quantizer(nn.Module):
    """Nearest codebook entry between L2-normalised vectors."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.codebook_size, config.code_dim)
        nn.init.normal_(self.embedding.weight)

    def codebook(self) -> Tensor:
        """The entries (v code_dim) on the unit sphere."""
        return F.normalize(self.embedding.weight, dim=-1)

    def lookup(self, codes: Tensor) -> Tensor:
        """codes (...) to unit vectors (... code_dim)."""
        return F.normalize(self.embedding(codes), dim=-1)

    def nearest(self, z: Tensor) -> Tensor:
        """Unit vectors z (... code_dim) to codes (...): on the sphere the nearest has the largest product."""
        # not by autocast: in bfloat16 many products near 1 are equal, and the first would win
        with torch.autocast(z.device.type, enabled=False):
            return (z.float() @ self.codebook().float().mT).argmax(-1)


class VQModel(nn.Module):
    """Encoder, codebook and decoder."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = PatchEncoder(config) if config.patch_width else Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Quantizer(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.code_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.code_dim, config.z_channels, 1)

    def features(self, pixels: Tensor) -> Tensor:
        """pixels (b 3 s s) in [-1,1] to unit vectors (b grid grid code_dim), float32."""
        z = self.quant_conv(self.encoder(pixels))
        return F.normalize(z.float().movedim(1, -1), dim=-1)

    def pixels(self, vectors: Tensor) -> Tensor:
        """Unit vectors (b grid grid code_dim) to pixels (b 3 s s)."""
        vectors = vectors.to(self.post_quant_conv.weight.dtype)
        return self.decoder(self.post_quant_conv(vectors.movedim(-1, 1)))

    def encode(self, pixels: Tensor) -> Tensor:
        """pixels (b 3 s s) in [-1,1] to codes (b grid*grid) int64, row by row from the top left."""
        return self.quantize.nearest(self.features(pixels)).flatten(1)

    def decode(self, codes: Tensor) -> Tensor:
        """codes (b grid*grid) to pixels (b 3 s s), about in [-1,1]."""
        grid = self.config.grid
        return self.pixels(self.quantize.lookup(codes.unflatten(1, (grid, grid))))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """For training: the reconstruction (b 3 s s), the codes (b grid*grid) and the quantizer's losses.

        "codebook" pulls entries to features, "commit" features to entries; gradients pass straight through.
        """
        z = self.features(pixels)
        codes = self.quantize.nearest(z)
        entries = self.quantize.lookup(codes).float()
        losses = {
            "codebook": (entries - z.detach()).pow(2).sum(-1).mean(),
            "commit": (z - entries.detach()).pow(2).sum(-1).mean(),
        }
        return self.pixels(z + (entries - z).detach()), codes.flatten(1), losses
