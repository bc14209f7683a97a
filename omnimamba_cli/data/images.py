"""RGB pictures to tensors and tensors to pictures. Files are read by data/reading.py."""

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from omnimamba_cli.data.reading import squashed


def _to_tensor(image: Image.Image) -> Tensor:
    """RGB to uint8 (3 h w)."""
    return torch.from_numpy(np.array(np.asarray(image).transpose(2, 0, 1), order="C"))  # one copy


def tower_pixels(image: Image.Image, size: int) -> Tensor:
    """RGB squashed to size x size, uint8 (3 s s): what the towers see, before scaling."""
    return _to_tensor(squashed(image, size))


def vq_pixels(image: Image.Image, size: int) -> Tensor:
    """The centre square of an RGB picture at size x size, uint8 (3 s s): what the image tokenizer sees."""
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    return _to_tensor(image)


def pixels_to_image(pixels: Tensor) -> Image.Image:
    """pixels (3 h w), about in [-1,1], to a picture."""
    values = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).cpu().numpy())
