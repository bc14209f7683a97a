"""Work in memory whose addresses never change, recorded once as a CUDA graph and replayed by a single launch."""

from collections.abc import Callable

import torch

from omnimamba_cli.ops.chips import at


class Recording:
    """Calls a function of no arguments: on CUDA by replaying its graph, else directly.

    On CUDA the constructor runs the function once, to load its kernels, and records it (which does not execute it). So
    the memory that it reads must be valid by then, and what it writes must be set afterwards.
    """

    def __init__(self, function: Callable[[], object], device: torch.device) -> None:
        self._device = device
        self._run: Callable[[], object] = function
        if device.type != "cuda":
            return
        with torch.cuda.device(device):
            here, aside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's
            # libraries and Triton load their kernels on the first call, which cannot be recorded
            aside.wait_stream(here)
            with torch.cuda.stream(aside):
                function()
            here.wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
                function()
        # the function is dropped: what it holds on to, such as a whole model, may then go when its owner does
        self._run = graph.replay

    def __call__(self) -> None:
        """Do the work, on the device's current stream."""
        with at(self._device):
            self._run()
