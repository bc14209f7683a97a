"""Pictures that are read once and stay in the GPU's memory, because reading files each time is slower than training."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from omnimamba_cli.data.batches import PictureBatch
from omnimamba_cli.data.mixing import Order, Split, start_worker
from omnimamba_cli.data.pictures import Pictures
from omnimamba_cli.data.rejects import Bad

SHARE = 0.25  # of the device's free memory that pictures may take
CHUNK = 256  # pictures read at a time


def fits(pictures: Pictures, device: torch.device) -> bool:
    """Whether all pictures, as uint8, leave a CUDA device room to train; never on other devices."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return len(pictures) * 3 * pictures.size**2 < SHARE * free


class ResidentPictures:
    """All pictures (n 3 s s) uint8 on a device. Gives the same batches as reading the files each time."""

    def __init__(self, pictures: Pictures, device: torch.device, *, workers: int = 0) -> None:
        n, s = len(pictures), pictures.size
        self.pixels = torch.empty(n, 3, s, s, dtype=torch.uint8, device=device)
        self.bad: dict[int, Bad] = {}
        loader = torch.utils.data.DataLoader(
            pictures,
            batch_sampler=[[(i, i) for i in range(at, min(at + CHUNK, n))] for at in range(0, n, CHUNK)],
            collate_fn=_keep_places,
            num_workers=workers,
            worker_init_fn=start_worker,
        )
        at = 0
        for pixels, bad in loader:
            self.pixels[at : at + len(pixels)] = pixels.to(device)
            self.bad.update({at + place: why for place, why in bad.items()})
            at += len(pixels)

    def __len__(self) -> int:
        return len(self.pixels)

    def batches(self, order: Order, split: Split, step: int) -> Iterator[PictureBatch]:
        """Micro-batches from a step on, without end."""
        return (self._batch(order.indices(positions)) for positions in split.from_step(step))

    def _batch(self, indices: np.ndarray) -> PictureBatch:
        bad = [self.bad[i] for i in indices.tolist() if i in self.bad] if self.bad else []
        kept = np.array([i for i in indices.tolist() if i not in self.bad], np.int64) if bad else indices
        rows = torch.from_numpy(kept)
        if self.pixels.is_cuda:
            rows = rows.pin_memory().to(self.pixels.device, non_blocking=True)
        return PictureBatch(self.pixels[rows], bad)


def _keep_places(items: Sequence[Tensor | Bad]) -> tuple[Tensor, dict[int, Bad]]:
    """Collate: all pictures, zeros in place of a bad one, and by place what is wrong with the bad ones."""
    bad = {place: item for place, item in enumerate(items) if isinstance(item, Bad)}
    good = next((item for item in items if isinstance(item, Tensor)), torch.zeros(3, 1, 1, dtype=torch.uint8))
    return torch.stack([torch.zeros_like(good) if isinstance(item, Bad) else item for item in items]), bad
