"""The image tokenizer: shapes at every size, the nearest code, gradients straight through."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from omnimamba_cli.config import VQConfig
from omnimamba_cli.model.vq import VQModel
from tests.numerics import assert_close

SIZES = {
    "one level": VQConfig(image_size=8, codebook_size=11, code_dim=3, z_channels=6, ch=8, ch_mult=(1,), norm_groups=4),
    "three levels": VQConfig(
        image_size=24, codebook_size=32, z_channels=16, ch=8, ch_mult=(1, 2, 3), num_res_blocks=1, norm_groups=8
    ),
    "patches": VQConfig(
        image_size=24, codebook_size=32, z_channels=16, ch=8, ch_mult=(1, 2, 3), norm_groups=8, patch_width=12
    ),
    "five levels": VQConfig(image_size=32, codebook_size=64, z_channels=32, ch=16, norm_groups=16),
}
CONFIG = SIZES["three levels"]


def seeded(config: VQConfig = CONFIG) -> VQModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VQModel(config).eval()


def pictures(config: VQConfig = CONFIG, count: int = 2) -> Tensor:
    size = config.image_size
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("name", SIZES)
@torch.inference_mode()
def test_a_picture_becomes_a_grid_of_codes_and_a_picture(name: str) -> None:
    config = SIZES[name]
    model = seeded(config)
    codes = model.encode(pictures(config))
    assert (codes.shape, codes.dtype) == ((2, config.codes), torch.int64)
    assert 0 <= int(codes.min()) <= int(codes.max()) < config.codebook_size
    again = model.decode(codes)
    assert again.shape == (2, 3, config.image_size, config.image_size)
    assert again.isfinite().all()


@torch.inference_mode()
def test_a_patch_encoder_gives_what_moves_the_same_codes_wherever_it_stands() -> None:
    config = SIZES["patches"]
    model, side = seeded(config), config.downsample
    thing = torch.rand(1, 3, 3 * side, 2 * side, generator=torch.Generator().manual_seed(2)) * 2 - 1
    codes = []
    for row, column, ground in ((0, 0, 1.0), (2, 3, -0.4)):
        canvas = torch.full((1, 3, config.image_size, config.image_size), ground)
        canvas[:, :, row * side : (row + 3) * side, column * side : (column + 2) * side] = thing
        grid = model.encode(canvas).view(config.grid, config.grid)
        codes.append(grid[row : row + 3, column : column + 2].clone())
        grid[row : row + 3, column : column + 2] = grid[-1, 0]
        assert len(grid.unique()) == 1, "the ground is one code everywhere"
    assert torch.equal(*codes)
    assert len(codes[0].unique()) > 1


@torch.inference_mode()
def test_a_picture_alone_is_the_picture_in_a_batch() -> None:
    model, x = seeded(), pictures(count=3)
    whole = model.encode(x)
    decoded = model.decode(whole)
    for i in range(3):
        assert torch.equal(model.encode(x[i : i + 1])[0], whole[i])
        assert_close("pixels", decoded[i], model.decode(whole[i : i + 1])[0], 1e-5)


@torch.inference_mode()
def test_the_nearest_entry_has_the_least_distance() -> None:
    quantizer = seeded().quantize
    rng = torch.Generator().manual_seed(0)
    z = F.normalize(torch.randn(50, 8, generator=rng), dim=-1)
    # entries of any length: what counts is their direction
    quantizer.embedding.weight *= torch.rand(32, 1, generator=rng) * 9 + 0.1
    unit = quantizer.embedding.weight / quantizer.embedding.weight.norm(dim=1, keepdim=True)
    assert torch.equal(quantizer.nearest(z), torch.cdist(z, unit).argmin(1))
    assert_close("lookup", unit[5], quantizer.lookup(torch.tensor(5)), 1e-6)


@torch.inference_mode()
def test_entries_are_their_own_nearest() -> None:
    quantizer = seeded().quantize
    codes = torch.arange(32).view(2, 16)
    assert torch.equal(quantizer.nearest(quantizer.lookup(codes)), codes)


@torch.inference_mode()
def test_codes_run_row_by_row_from_the_top_left() -> None:
    model = seeded()
    codes = torch.zeros(1, CONFIG.codes, dtype=torch.int64)
    changed = codes.clone()
    changed[0, CONFIG.grid - 1] = 9  # the end of the first row
    model.decoder.mid[1] = torch.nn.Identity()  # attention and norms spread a change everywhere
    for level in model.decoder.conv_blocks:
        level.attn = torch.nn.ModuleList()
    for module in list(model.decoder.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.GroupNorm):
                setattr(module, name, torch.nn.Identity())
    difference = (model.decode(changed) - model.decode(codes)).abs().sum((0, 1))
    y, x = divmod(int(difference.argmax()), CONFIG.image_size)
    assert y < CONFIG.image_size / 3
    assert x > CONFIG.image_size * 2 / 3


def test_training_returns_what_encode_and_decode_do() -> None:
    model, x = seeded(), pictures()
    reconstruction, codes, losses = model(x)
    assert torch.equal(codes, model.encode(x))
    assert_close("picture", model.decode(codes), reconstruction, 1e-5)
    distance = (model.features(x).flatten(1, 2) - model.quantize.lookup(codes)).square().sum(-1).mean()
    assert_close("commit", distance, losses["commit"], 1e-5)
    assert_close("codebook", distance, losses["codebook"], 1e-5)


def test_the_pictures_gradient_passes_straight_through() -> None:
    model, x = seeded(), pictures()
    z = model.features(x).detach().requires_grad_()
    entries = model.quantize.lookup(model.quantize.nearest(z)).detach().requires_grad_()
    model.features = lambda _: z  # type: ignore[method-assign]
    model(x)[0].sin().sum().backward()
    model.pixels(entries).sin().sum().backward()
    # the features get what the entries in their place would get
    assert_close("gradient", entries.grad, z.grad, 1e-4)
    assert model.quantize.embedding.weight.grad is None or not model.quantize.embedding.weight.grad.any()


@pytest.mark.parametrize(("loss", "trains"), [("codebook", "quantize."), ("commit", ("encoder.", "quant_conv."))])
def test_each_quantizer_loss_pulls_one_side(loss: str, trains: str | tuple[str, ...]) -> None:
    model = seeded()
    model(pictures())[2][loss].backward()
    for name, parameter in model.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        if not name.startswith(trains):
            assert not reached, name
    assert any(p.grad is not None and p.grad.any() for n, p in model.named_parameters() if n.startswith(trains))


@torch.inference_mode()
def test_bfloat16_weights_choose_codes_in_float32() -> None:
    model = seeded().bfloat16()
    z = model.features(pictures().bfloat16())
    assert z.dtype == torch.float32
    codes = model.encode(pictures().bfloat16())
    assert torch.equal(codes, (z @ model.quantize.codebook().float().mT).argmax(-1).flatten(1))
    assert model.decode(codes).dtype == torch.bfloat16


@torch.inference_mode()
def test_autocast_does_not_blur_the_nearest() -> None:
    # entries within 0.01 of each other: their products differ by less than bfloat16 can tell
    quantizer = seeded().quantize
    rng = torch.Generator().manual_seed(0)
    near = torch.ones(8) + 0.01 * torch.randn(32, 8, generator=rng)
    quantizer.embedding.weight.copy_(near)
    z = quantizer.codebook()
    with torch.autocast("cpu", torch.bfloat16):
        got = quantizer.nearest(z)
    assert torch.equal(got, torch.arange(32))


@torch.inference_mode()
def test_decoding_is_deterministic() -> None:
    codes = torch.arange(36)[None] % 32
    assert torch.equal(seeded().decode(codes), seeded().decode(codes))
