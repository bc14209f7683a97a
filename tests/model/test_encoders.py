"""Our image encoders are timm's: the same tensors, the same features, the same gradients; and they import no timm."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from omnimamba_cli.config import TowerConfig
from omnimamba_cli.engine.checkpoint import load_directory
from omnimamba_cli.errors import ConfigError
from omnimamba_cli.model import encoders
from omnimamba_cli.model.vision import Tower
from omnimamba_cli.presets import DINOV2, NANO_TOWER, SIGLIP
from tests.numerics import assert_close

NANO = Path(__file__).parents[2] / "weights" / "nano"
SMALL_VIT = {"depth": 3, "embed_dim": 24, "patch_size": 7}
# maps of odd sizes: 45 pixels are six patches of seven and a remainder, 76 are stages of 19, 9 and 4 places
DINO = replace(DINOV2, width=24, patches=36, image_size=45, options={**SMALL_VIT, "num_heads": 3})
DINO_WITH_PLACES = replace(DINO, layer=0, options={**DINO.options, "no_embed_class": False, "init_values": 0.0})
SMALL_SIGLIP = replace(
    SIGLIP, width=24, patches=36, image_size=45, layer=1, options={**SMALL_VIT, "num_heads": 2, "mlp_ratio": None}
)
# None is as good as no option
CONV = replace(
    NANO_TOWER, width=24, patches=16, image_size=76, options={"dims": [8, 16, 24, 32], "depths": [1, 2, 3, 1]}
)
CONV_TO_ITS_END = replace(CONV, width=32, patches=4, layer=-1)
SMALL = {
    "dino": DINO, "dino with places for all": DINO_WITH_PLACES, "siglip": SMALL_SIGLIP,
    "convnext": CONV, "convnext to its end": CONV_TO_ITS_END,
}  # fmt: skip
every = pytest.mark.parametrize("config", SMALL.values(), ids=SMALL)


def theirs(config: TowerConfig) -> Any:  # Any: timm has no types
    """timm's encoder up to the block that is read."""
    size = {"img_size": config.image_size} if config.name.startswith("vit_") else {}
    net = timm.create_model(config.name, num_classes=0, **size, **config.options)
    net.prune_intermediate_layers([config.layer], prune_norm=True, prune_head=True)
    net.head = nn.Identity()
    return net


def read(net: Any, config: TowerConfig, pixels: Tensor) -> Tensor:
    """What timm's encoder makes of pictures."""
    mean, std = (torch.tensor(v, dtype=pixels.dtype).view(3, 1, 1) for v in (config.mean, config.std))
    maps: Tensor = net.forward_intermediates(
        (pixels - mean) / std, indices=[-1], norm=False, output_fmt="NCHW", intermediates_only=True
    )[0]
    return maps.flatten(2).mT


def pair(config: TowerConfig) -> tuple[Tower, Any]:
    """Ours and timm's with the same weights, none of them zero or one."""
    net = theirs(config)
    torch.manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, mean=0.02, std=0.2)
    own = Tower(config)
    assert isinstance(own.net, encoders.ViT | encoders.ConvNeXt)
    own.net.load_state_dict(net.state_dict(), strict=True)
    return own.eval(), net.eval()


def pictures(config: TowerConfig, b: int) -> Tensor:
    return torch.rand(b, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(b))


@pytest.mark.parametrize("config", [DINOV2, SIGLIP, NANO_TOWER, *SMALL.values()], ids=lambda c: f"{c.name} {c.width}")
def test_the_tensors_have_timms_names_and_shapes(config: TowerConfig) -> None:
    with torch.device("meta"):
        own, net = Tower(config).net, theirs(config)
    assert isinstance(own, encoders.ViT | encoders.ConvNeXt)
    shapes = [{name: tuple(t.shape) for name, t in module.state_dict().items()} for module in (own, net)]
    assert shapes[0] == shapes[1]


@every
@pytest.mark.parametrize("b", [1, 3])
@torch.inference_mode()
def test_the_features_are_timms(config: TowerConfig, b: int) -> None:
    own, net = pair(config)
    got = own(pictures(config, b))
    assert got.shape == (b, config.patches, config.width)
    assert_close("patches", read(net, config, pictures(config, b)), got, 2e-6)


@every
@torch.inference_mode()
def test_to_the_last_bits_in_float64(config: TowerConfig) -> None:
    # a norm's small constant or another GELU would be lost in the rounding of float32
    own, net = (module.double() for module in pair(config))
    pixels = pictures(config, 2).double()
    assert_close("patches", read(net, config, pixels), own(pixels), 1e-13)


@every
@torch.inference_mode()
def test_bfloat16_is_no_further_off_than_timms(config: TowerConfig) -> None:
    own, net = pair(config)
    want = own(pictures(config, 3))
    pixels = pictures(config, 3).bfloat16()
    error = (read(net.bfloat16(), config, pixels) - want).norm() / want.norm()
    got = own.bfloat16()(pixels)
    assert got.dtype == torch.bfloat16
    assert_close("patches", want, got, 1.2 * float(error))


@every
def test_gradients_are_timms(config: TowerConfig) -> None:
    own, net = (module.train() for module in pair(config))
    pixels, weight = pictures(config, 2), torch.rand(2, config.patches, config.width)
    (own(pixels) * weight).sum().backward()
    (read(net, config, pixels) * weight).sum().backward()
    found = dict(own.net.named_parameters())
    for name, parameter in net.named_parameters():
        assert parameter.grad.norm() > 0, name
        assert_close(name, parameter.grad, found[name].grad, 1e-4)


def test_training_leaves_out_the_same_blocks() -> None:
    config = replace(CONV, options={**CONV.options, "drop_path_rate": 0.5})
    own, net = (module.train() for module in pair(config))
    results = []
    for run in (lambda: own(pictures(config, 9)), lambda: read(net, config, pictures(config, 9))):
        torch.manual_seed(3)
        results.append(run())
    assert_close("patches", results[1], results[0], 2e-6)
    whole = own.eval()(pictures(config, 9))
    assert not torch.allclose(results[0], whole, rtol=0.05)
    assert torch.equal(own(pictures(config, 9)), whole)


@every
def test_fresh_weights_are_drawn_as_timms(config: TowerConfig) -> None:
    torch.manual_seed(0)
    own, net = Tower(config).net.state_dict(), theirs(config).state_dict()
    for name, wanted in net.items():
        if len(set(wanted.flatten().tolist())) == 1:  # a norm's, a bias, a scale
            assert torch.equal(own[name], wanted), name
        elif "patch_embed" not in name:  # timm leaves that as torch makes a convolution
            assert abs(float(own[name].mean() - wanted.mean())) < 0.01, name
            assert float(own[name].std()) == pytest.approx(float(wanted.std()), rel=0.5), name


@torch.inference_mode()
def test_nanos_own_tower_sees_what_timms_sees() -> None:
    towers = load_directory(NANO, dtype=torch.float32, parts=("vision",)).towers
    assert towers is not None
    own = towers.towers[0]
    net = theirs(NANO_TOWER).eval()
    net.load_state_dict(own.net.state_dict())
    pixels = pictures(NANO_TOWER, 3)
    assert_close("patches", read(net, NANO_TOWER, pixels), towers(pixels), 2e-6)


# whose code is run


@pytest.mark.parametrize(
    "config",
    [
        replace(CONV, name="convnext_femto"),
        replace(CONV, options={**CONV.options, "conv_mlp": False}),
        replace(DINO, options={**DINO.options, "qkv_bias": False}),
    ],
    ids=["another name", "an option of timm's", "one of a ViT"],
)
@torch.inference_mode()
def test_any_other_encoder_is_timms(config: TowerConfig) -> None:
    own = Tower(config).eval()
    assert type(own.net).__module__.startswith("timm.")
    assert_close("patches", read(own.net, config, pictures(config, 1)), own(pictures(config, 1)), 1e-6)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (replace(CONV, layer=4), "layer is 4; convnext_atto has 4 to read"),
        (replace(DINO, layer=-4), "layer is -4; vit_large_patch14_reg4_dinov2 has 3"),
        (replace(CONV, options={**CONV.options, "depths": [1, 1]}), "2 depths .* for 4 dims"),
        (replace(DINO, options={**DINO.options, "num_heads": 5}), "embed_dim is 24, no multiple of num_heads 5"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(config: TowerConfig, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Tower(config)


def test_a_picture_is_looked_at_without_timm() -> None:
    code = (
        "import sys; from omnimamba_cli.cli.app import main; code = main(sys.argv[1:]);"
        "bad = {'timm', 'torchvision', 'torch._dynamo', 'torch._inductor', 'sympy', 'scipy'} & set(sys.modules);"
        "sys.exit(f'imported {bad}' if bad else code)"
    )
    picture = str(NANO / "samples.png")
    words = ["caption", picture, "-m", str(NANO), "--device", "cpu", "--max-new-tokens", "2"]
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=NANO.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
