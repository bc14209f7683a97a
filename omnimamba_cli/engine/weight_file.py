"""Reads the weights of a safetensors file onto a device: while one is converted, the next ones are being read."""

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from omnimamba_cli.engine import storage
from omnimamba_cli.engine.safetensors_io import Header, read_safetensors, read_tensor

THREADS = 4  # that read the disk and copy to the device; the caller's thread converts, for one work space is enough
AHEAD = 8  # tensors at most that wait on the device


class WeightFile:
    """One file for one device; `names` are the weights in the order in which they will be asked for, each once.

    On a CPU nothing is read ahead, and what needs no conversion stays mapped.
    """

    def __init__(self, path: Path, header: Header, device: torch.device, names: Iterable[str]) -> None:
        self.path, self.header, self.device = path, header, device
        on_cpu = device.type == "cpu"
        self._mapped = read_safetensors(path)[0] if on_cpu else {}
        self._todo = deque(() if on_cpu else (stored for name in names for stored in storage.stored(name, header)))
        self._coming: dict[str, Future[Tensor]] = {}
        self._pool = None if on_cpu else ThreadPoolExecutor(THREADS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def weight(self, name: str, dtype: torch.dtype | None) -> Tensor:
        """A weight as `storage.decode` makes it."""
        if name in self._mapped and storage.decoded_dtype(name, self.header, dtype) == self._mapped[name].dtype:
            return self._mapped[name]
        # read, not mapped: mapped pages would stay in memory beside the copy
        return storage.decode(name, self.header, self.stored, dtype)

    def stored(self, name: str) -> Tensor:
        """A tensor as it is stored, but on the device, where it is converted faster."""
        if self._pool is None:
            return read_tensor(self.path, self.header, name)
        while self._todo and (len(self._coming) < AHEAD or name not in self._coming):
            self._send(self._todo.popleft())
        if name not in self._coming:
            self._send(name)
        return self._coming.pop(name).result()

    def _send(self, name: str) -> None:
        assert self._pool is not None
        self._coming[name] = self._pool.submit(lambda: read_tensor(self.path, self.header, name).to(self.device))
