"""Work on memory that stays where it is, recorded once as a CUDA graph and repeated at the price of one launch."""

from collections.abc import Callable

import torch


class Recording:
    """A function of no arguments, run when called: on CUDA as a graph, else as it is.

    Making one on CUDA runs the function twice in effect (once to load its kernels, once recorded, not executed), so
    what it reads must be valid memory by then, and what it writes is to be set afterwards.
    """

    def __init__(self, function: Callable[[], object], device: torch.device) -> None:
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
        """Do the work, on the current stream."""
        self._run()
