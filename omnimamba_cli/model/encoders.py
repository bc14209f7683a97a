"""Image encoders of our models, in the names and shapes of timm's files: ViT (DINOv2, SigLIP) and ConvNeXt.

They spare us timm, whose import takes seconds. Shapes: b pictures, c channels, h w places of a map, k pixels of a
patch's side, n patches, d width. Sources: Dosovitskiy et al. 2020, arXiv:2010.11929; Darcet et al.
2023, arXiv:2309.16588 (registers); Zhai et al. 2023, arXiv:2303.15343 (SigLIP); Liu et al. 2022, arXiv:2201.03545.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimamba_cli.errors import ConfigError

NORM_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class ViTSizes:
    """A vision transformer, in timm's words."""

    img_size: int = 0  # pixels a side; always given
    patch_size: int  # pixels a side
    embed_dim: int
    depth: int  # blocks
    num_heads: int
    mlp_ratio: float = 4.0
    init_values: float = 0.0  # of layer scale; 0: there is none
    class_token: bool = True
    reg_tokens: int = 0
    no_embed_class: bool = False  # positions for patches alone

    def __post_init__(self) -> None:
        if self.embed_dim % self.num_heads:
            raise ConfigError(f"an encoder's embed_dim is {self.embed_dim}, no multiple of num_heads {self.num_heads}")


@dataclass(frozen=True, kw_only=True)
class ConvNeXtSizes:
    """A ConvNeXt with patches of four pixels, kernels of seven and an MLP of four times the width."""

    depths: tuple[int, ...]  # blocks of each stage
    dims: tuple[int, ...]  # widths of each stage
    drop_path_rate: float = 0.0  # share of the deepest block's rows left out in training; earlier ones lose less

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.dims):
            raise ConfigError(f"an encoder has {len(self.depths)} depths {self.depths} for {len(self.dims)} dims")


OURS: dict[str, ViTSizes | ConvNeXtSizes] = {
    "vit_large_patch14_reg4_dinov2": ViTSizes(
        patch_size=14, embed_dim=1024, depth=24, num_heads=16, init_values=1e-5, reg_tokens=4, no_embed_class=True
    ),
    "vit_so400m_patch14_siglip_384": ViTSizes(
        patch_size=14, embed_dim=1152, depth=27, num_heads=16, mlp_ratio=3.7362, class_token=False
    ),
    "convnext_atto": ConvNeXtSizes(depths=(2, 2, 6, 2), dims=(40, 80, 160, 320)),
}


def build(name: str, options: Mapping[str, Any], layer: int) -> "ViT | ConvNeXt | None":
    """The encoder of timm's name and options, up to the block (ViT) or stage `layer`; None where we have none.

    Raises ConfigError where the encoder has no such block, or sizes do not fit together.
    """
    sizes = OURS.get(name)
    if sizes is None or not options.keys() <= {field.name for field in fields(sizes)}:
        return None
    sizes = replace(sizes, **{key: value for key, value in options.items() if value is not None})  # as timm takes them
    blocks = sizes.depth if isinstance(sizes, ViTSizes) else len(sizes.depths)
    if not -blocks <= layer < blocks:
        raise ConfigError(f"layer is {layer}; {name} has {blocks} to read")
    kept = range(blocks)[layer] + 1
    return ViT(sizes, kept) if isinstance(sizes, ViTSizes) else ConvNeXt(sizes, kept)


def _patches(x: Tensor, k: int) -> Tensor:
    """Maps (b c h w) to patches (b h/k w/k c*k*k), in the order of a convolution's weights; a remainder is left out."""
    b, c, h, w = x.shape
    h, w = h // k, w // k
    x = x[..., : h * k, : w * k].reshape(b, c, h, k, w, k)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b, h, w, c * k * k)


def _start(module: nn.Module) -> None:
    """Fresh weights as both papers have them: small and normal, biases zero."""
    # of the meta device only shapes are wanted, and some versions of torch load their compiler to fill them
    if isinstance(module, nn.Linear | nn.Conv2d) and not module.weight.is_meta:
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Scale(nn.Module):
    """A learned factor for each channel."""

    def __init__(self, width: int, value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), value))


class Attention(nn.Module):
    """Every token looks at every other."""

    def __init__(self, sizes: ViTSizes) -> None:
        super().__init__()
        self.num_heads = sizes.num_heads
        self.qkv = nn.Linear(sizes.embed_dim, 3 * sizes.embed_dim)
        self.proj = nn.Linear(sizes.embed_dim, sizes.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (b n d) to (b n d)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (b heads n d/heads) each
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """Two linear maps with an exact GELU between; a ConvNeXt's file has them as 1 by 1 convolutions."""

    def __init__(self, width: int, hidden: int, *, convolutions: bool) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, hidden, 1) if convolutions else nn.Linear(width, hidden)
        self.fc2 = nn.Conv2d(hidden, width, 1) if convolutions else nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """x (... d) to (... d)."""
        x = F.gelu(F.linear(x, self.fc1.weight.flatten(1), self.fc1.bias))
        return F.linear(x, self.fc2.weight.flatten(1), self.fc2.bias)


class ViTBlock(nn.Module):
    """Attention and an MLP, each added to what it reads normed."""

    def __init__(self, sizes: ViTSizes) -> None:
        super().__init__()
        d, value = sizes.embed_dim, sizes.init_values
        self.norm1, self.norm2 = (nn.LayerNorm(d, NORM_EPS) for _ in range(2))
        self.attn = Attention(sizes)
        self.mlp = MLP(d, int(d * sizes.mlp_ratio), convolutions=False)
        self.ls1, self.ls2 = (Scale(d, value) if value else None for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """x (b n d) to (b n d)."""
        x = self._add(x, self.attn(self.norm1(x)), self.ls1)
        return self._add(x, self.mlp(self.norm2(x)), self.ls2)

    @staticmethod
    def _add(x: Tensor, y: Tensor, scale: Scale | None) -> Tensor:
        return x + y if scale is None else torch.addcmul(x, y, scale.gamma)


class PatchEmbed(nn.Module):
    """Each patch by itself, in one linear map: in the file a convolution."""

    def __init__(self, sizes: ViTSizes) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, sizes.embed_dim, sizes.patch_size, sizes.patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels (b 3 s s) to (b n d)."""
        patches = _patches(pixels, self.proj.kernel_size[0]).flatten(1, 2)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class ViT(nn.Module):
    """Patches, positions, and the first `kept` blocks."""

    def __init__(self, sizes: ViTSizes, kept: int) -> None:
        super().__init__()
        d, n = sizes.embed_dim, (sizes.img_size // sizes.patch_size) ** 2
        self.prefix = int(sizes.class_token) + sizes.reg_tokens
        self.patch_embed = PatchEmbed(sizes)
        self.cls_token = nn.Parameter(torch.empty(1, 1, d)) if sizes.class_token else None
        self.reg_token = nn.Parameter(torch.empty(1, sizes.reg_tokens, d)) if sizes.reg_tokens else None
        self.patches_alone = sizes.no_embed_class
        self.pos_embed = nn.Parameter(torch.empty(1, n if self.patches_alone else n + self.prefix, d))
        self.blocks = nn.Sequential(*(ViTBlock(sizes) for _ in range(kept)))
        self.apply(_start)
        if not self.pos_embed.is_meta:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for token in (self.cls_token, self.reg_token):
            if token is not None and not token.is_meta:
                nn.init.normal_(token, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised pixels (b 3 s s) to the patches (b n d) of the last kept block."""
        x = self.patch_embed(x)
        if self.patches_alone:
            x = x + self.pos_embed
        tokens = [token.expand(len(x), -1, -1) for token in (self.cls_token, self.reg_token) if token is not None]
        x = torch.cat([*tokens, x], dim=1)
        if not self.patches_alone:
            x = x + self.pos_embed
        return self.blocks(x)[:, self.prefix :]  # type: ignore[no-any-return]


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution and an MLP, added with a learned factor."""

    def __init__(self, d: int, drop_path: float) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(d, d, 7, padding=3, groups=d)
        self.norm = nn.LayerNorm(d, NORM_EPS)
        self.mlp = MLP(d, 4 * d, convolutions=True)
        self.gamma = nn.Parameter(torch.full((d,), 1e-6))
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        """x (b h w d) to (b h w d)."""
        y = x.permute(0, 3, 1, 2)  # channels last, as the convolution takes them too
        if x.is_cuda and not torch.is_grad_enabled():
            y = y.contiguous()  # torch's own kernel: cuDNN makes a plan for every new b, half a second for the network
        y = self.conv_dw(y).permute(0, 2, 3, 1)
        y = self.mlp(self.norm(y))
        if self.training and self.drop_path > 0:
            # stochastic depth, Huang et al. 2016, arXiv:1603.09382: whole rows are zero, the others scaled up
            kept = 1 - self.drop_path
            y = y * (y.new_empty(len(y), 1, 1, 1).bernoulli_(kept) / kept)
        return torch.addcmul(x, y, self.gamma)


class ConvNeXtStage(nn.Module):
    """Blocks of one width, after halving the map where it is not the first stage."""

    def __init__(self, before: int, d: int, drop_paths: list[float], *, first: bool) -> None:
        super().__init__()
        self.downsample = None if first else nn.Sequential(nn.LayerNorm(before, NORM_EPS), nn.Conv2d(before, d, 2, 2))
        self.blocks = nn.Sequential(*(ConvNeXtBlock(d, share) for share in drop_paths))

    def forward(self, x: Tensor) -> Tensor:
        """x (b h w before) to (b h' w' d)."""
        if self.downsample is not None:
            norm, conv = self.downsample
            x = F.linear(_patches(norm(x).permute(0, 3, 1, 2), 2), conv.weight.flatten(1), conv.bias)
        return self.blocks(x)  # type: ignore[no-any-return]


class ConvNeXt(nn.Module):
    """A stem of patches and the first `kept` stages; maps have their channels last, so that all else is linear."""

    def __init__(self, sizes: ConvNeXtSizes, kept: int) -> None:
        super().__init__()
        d, whole = sizes.dims[0], sum(sizes.depths)
        rising = [sizes.drop_path_rate * i / max(whole - 1, 1) for i in range(whole)]
        self.stem = nn.Sequential(nn.Conv2d(3, d, 4, 4), nn.LayerNorm(d, NORM_EPS))
        stages = []
        for i in range(kept):
            begun = sum(sizes.depths[:i])
            paths = rising[begun : begun + sizes.depths[i]]
            stages.append(ConvNeXtStage(sizes.dims[max(i - 1, 0)], sizes.dims[i], paths, first=i == 0))
        self.stages = nn.Sequential(*stages)
        self.apply(_start)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised pixels (b 3 s s) to the places (b n d) of the last kept stage's map, row by row."""
        conv, norm = self.stem
        x = F.linear(_patches(x, 4), conv.weight.flatten(1), conv.bias)
        return self.stages(norm(x)).flatten(1, 2)  # type: ignore[no-any-return]
