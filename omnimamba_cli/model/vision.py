"""The image encoders (towers) of a model: features of each patch, from the block that the config names, concatenated.

`_network` decides whose code runs: ours (encoders.py) for the encoders it has, timm's for any other name.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from omnimamba_cli.config import TowerConfig
from omnimamba_cli.model import encoders
from omnimamba_cli.model.meta import sharing_copy

CPU_PICTURES = 8  # at once on a CPU: maps of more leave its caches, and take a sixth longer a picture


def _options(config: TowerConfig) -> dict[str, Any]:  # Any: timm's own keyword arguments
    options = dict(config.options)
    if config.name.startswith("vit_"):
        options.setdefault("img_size", config.image_size)  # fixes the size of the position table
    return options


def _network(config: TowerConfig) -> nn.Module:
    """The encoder up to the block that is read; names and shapes of its tensors are timm's in either case."""
    own = encoders.build(config.name, _options(config), config.layer)
    if own is not None:
        return own
    net = _timm(config)
    net.prune_intermediate_layers([config.layer], prune_norm=True, prune_head=True)
    net.head = nn.Identity()  # some versions of timm leave the head's norm standing
    return net


def _timm(config: TowerConfig) -> Any:  # Any: timm has no types
    """The whole encoder, by timm."""
    import timm  # here: it takes seconds, and our own encoders need none of it

    return timm.create_model(config.name, pretrained=False, num_classes=0, **_options(config))


@cache
def _per_channel(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers as a tensor (c 1 1), cached: copying them each time would wait for all that the GPU still has to do."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)[:, None, None]


class Tower(nn.Module):
    """One encoder up to the block that is read; what comes after it is never built into memory."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.net = _network(config)
        self.is_vit = config.name.startswith("vit_")
        # plain numbers, not buffers: they survive construction on the meta device
        self.mean, self.std = config.mean, config.std

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels (b 3 s s) in [0,1] to patches (b n c)."""
        mean, std = (_per_channel(tuple(v), pixels.dtype, pixels.device) for v in (self.mean, self.std))
        x = (pixels - mean) / std
        if isinstance(self.net, encoders.ViT | encoders.ConvNeXt):
            return self.net(x)  # type: ignore[no-any-return]
        layout = "NLC" if self.is_vit else "NCHW"
        (maps,) = self.net.forward_intermediates(
            x, indices=[-1], norm=False, output_fmt=layout, intermediates_only=True
        )
        return maps if self.is_vit else maps.flatten(2).mT  # type: ignore[no-any-return]  # (b n c)


class VisionTowers(nn.Module):
    """All towers of a model, in the order their features are joined."""

    def __init__(self, configs: tuple[TowerConfig, ...]) -> None:
        super().__init__()
        self.towers = nn.ModuleList(Tower(c) for c in configs)
        self.pixels_dtype: torch.dtype | None = None  # of what the towers are shown; None: that of the weights
        self.eval()
        self.requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next(self.parameters()).dtype

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels (b 3 s s) in [0,1] to patches (b n vision_dim)."""
        pixels = pixels.to(self.pixels_dtype or self.dtype)
        if pixels.device.type == "cpu" and len(pixels) > CPU_PICTURES:
            return torch.cat([self(part) for part in pixels.split(CPU_PICTURES)])
        return torch.cat([tower(pixels) for tower in self.towers], dim=-1)


def narrowed(towers: VisionTowers, dtype: torch.dtype) -> VisionTowers:
    """Frozen towers for use under autocast to a 16-bit dtype, with bit for bit the same outputs as the given ones.

    The weights that autocast would cast at every call are cast once; all other tensors are shared.
    """
    result = sharing_copy(towers)
    result.pixels_dtype = towers.dtype
    for module in result.modules():
        if type(module) in (nn.Linear, nn.Conv2d):  # no derived class: it may use its weights in other ways
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(parameter.detach().to(dtype), requires_grad=False))
    return result


def timm_state(config: TowerConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A published timm checkpoint as the tensors of our Tower (without its prefix).

    Position tables are resampled to the tower's image size; blocks after the read one, the final norm and the head
    are left out. Names that the whole timm model does not have stay, so that the caller can refuse them.
    """
    with torch.device("meta"):
        whole = _timm(config)
        kept = Tower(config)
    resampled = _resample_positions(tensors, whole)
    dropped = set(whole.state_dict()) - set(kept.net.state_dict())
    # the head was built without classes, so its names are in neither model
    return {k: v for k, v in resampled.items() if k not in dropped and not k.startswith("head.")}


def _resample_positions(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The position table at the model's own grid, by timm's resampling."""
    table = tensors.get("pos_embed")
    embed = getattr(model, "patch_embed", None)
    if table is None or embed is None or table.shape == model.pos_embed.shape:
        return tensors
    prefix = 0 if getattr(model, "no_embed_class", False) else getattr(model, "num_prefix_tokens", 0)
    from timm.layers import resample_abs_pos_embed

    new = resample_abs_pos_embed(table.float(), list(embed.grid_size), num_prefix_tokens=prefix)
    return {**tensors, "pos_embed": new.to(table.dtype)}
