"""Reads prefixes by our kernels into the memory that steps go on from; a shape that comes again is recorded."""

import torch
from torch import Tensor

from omnimamba_cli.engine.recording import Recording
from omnimamba_cli.model.stepping import StepMemory, Stepper

KEPT = 4  # recordings
MOST_TOKENS = 4096  # of a recording: launches do not slow larger prefixes, and a recording keeps its memory
# what is calculated in for a model's dtype: float16 has an eighth of bfloat16's rounding, and as a rule room enough
NARROWER = {torch.bfloat16: torch.float16}


class PrefixReader:
    """Prefixes of one merged model."""

    def __init__(self, stepper: Stepper, dtype: torch.dtype) -> None:
        self._stepper, self._dtype = stepper, dtype
        self._shapes: dict[tuple[int, int, int], _Shape] = {}

    def forget(self) -> None:
        """Drop all recordings, and with them the memories that they write to."""
        self._shapes.clear()

    def read(self, x: Tensor, memory: StepMemory, *, record: bool) -> None:
        """Read x (rows l d) float32, see Stepper.read; `record`: the memory will be used again."""
        # steps of many rows round more than a prefix would
        dtype = self._dtype if memory.batch is not None else NARROWER.get(self._dtype, self._dtype)
        if record and x.shape[0] * x.shape[1] <= MOST_TOKENS:
            self._shape(x, memory, dtype).read(x)
        else:
            self._stepper.read(x, memory, dtype)
        if dtype != self._dtype and not bool(memory.logits.isfinite().all()):
            self._stepper.read(x, memory, self._dtype)  # something was too large

    def _shape(self, x: Tensor, memory: StepMemory, dtype: torch.dtype) -> "_Shape":
        key = (len(x), x.shape[1], id(memory))
        if key not in self._shapes:
            self._shapes[key] = _Shape(self._stepper, memory, dtype)  # holds the memory, so its id is not reused
            while len(self._shapes) > KEPT:
                del self._shapes[next(iter(self._shapes))]
        return self._shapes[key]


class _Shape:
    """Prefixes of one shape into one memory."""

    def __init__(self, stepper: Stepper, memory: StepMemory, dtype: torch.dtype) -> None:
        self._stepper, self._memory, self._dtype = stepper, memory, dtype
        self._seen = False
        self._recording: Recording | None = None

    def read(self, x: Tensor) -> None:
        if not self._seen:
            self._seen = True
            self._stepper.read(x, self._memory, self._dtype)
            return
        if self._recording is None:
            self._x = x.clone()
            self._recording = Recording(lambda: self._stepper.read(self._x, self._memory, self._dtype), x.device)
        self._x.copy_(x)
        self._recording()
        self._memory.pending = False
