"""Codes to pixels, one picture at a time; on CUDA channels last, and recorded where decoding steps are."""

import torch
from PIL import Image
from torch import Tensor

from omnimamba_cli.data.images import pixels_to_image
from omnimamba_cli.engine.recording import Recording
from omnimamba_cli.model.vq import VQModel
from omnimamba_cli.ops import registry

UNDRAWN = (128, 128, 128)


class PixelDecoder:
    """The image tokenizer's decoder for one device. It works in the weights' dtype."""

    def __init__(self, vq: VQModel) -> None:
        self.vq = vq
        self._device = vq.quantize.embedding.weight.device
        self._seen = False
        self._recording: Recording | None = None
        self._records = registry.step_kernels(vq.quantize.embedding.weight).name != "torch"
        if self._device.type == "cuda":
            # the layout that matrix units convolve in: else every convolution transposes its maps twice
            vq.decoder.to(memory_format=torch.channels_last)

    def __call__(self, codes: Tensor) -> Tensor:
        """codes (1 n) to pixels (1 3 s s), about in [-1,1]; overwritten by the next call."""
        if not self._records or not self._seen:
            self._seen = True
            return self._decode(codes)
        if self._recording is None:
            self._codes = codes.clone()

            def decode() -> None:
                self._pixels = self._decode(self._codes)

            self._recording = Recording(decode, self._device)
        self._codes.copy_(codes)
        self._recording()
        return self._pixels

    @torch.inference_mode()
    def unfinished(self, codes: Tensor) -> Image.Image:
        """The picture of its first codes (done); rows of codes that are not complete yet are gray."""
        config = self.vq.config
        missing = config.codes - len(codes)
        known = torch.cat([codes, codes[-1:].expand(missing)]).to(self._device)
        picture = pixels_to_image(self(known[None])[0])
        whole = len(codes) // config.grid * config.downsample  # pixels from above
        picture.paste(UNDRAWN, (0, whole, *picture.size))
        return picture

    def _decode(self, codes: Tensor) -> Tensor:
        pixels: Tensor = self.vq.decode(codes)
        return pixels
