"""Pictures kept on a device give the batches that reading them gives."""

from itertools import islice
from pathlib import Path

import torch
from PIL import Image

from omnimamba_cli.data.batches import collate_pictures
from omnimamba_cli.data.mixing import Order, Sampler, Split, loader
from omnimamba_cli.data.pictures import Pictures
from omnimamba_cli.data.resident import ResidentPictures, fits


def test_resident_batches_equal_read_ones(tmp_path: Path) -> None:
    for i in range(10):
        Image.new("RGB", (20, 16), (20 * i, 7, 200 - 20 * i)).save(tmp_path / f"{i}.png")
    (tmp_path / "4.png").write_bytes(b"no picture")
    pictures = Pictures.below(tmp_path, 8)
    order, split = Order(len(pictures), 3), Split(rows=4, parts=2)
    read = iter(loader(pictures, Sampler(order, split, 1), collate=collate_pictures, workers=0))
    kept = ResidentPictures(pictures, torch.device("cpu")).batches(order, split, 1)
    bad = 0
    for one, two in islice(zip(read, kept, strict=False), 20):
        assert torch.equal(one.pixels, two.pixels)
        assert [b.name for b in one.bad] == [b.name for b in two.bad]
        assert one.samples == two.samples == 2
        bad += len(one.bad)
    assert bad >= 2


def test_pictures_stay_resident_on_cuda_alone(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert not fits(Pictures.below(tmp_path, 8), torch.device("cpu"))
