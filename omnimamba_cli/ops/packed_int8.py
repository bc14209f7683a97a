"""int8 weights on an x86 CPU by FBGEMM, which comes with PyTorch: as fast as the weights can be read from memory.

FBGEMM rounds its inputs to 8 bits, an error of 1.5 %. So each row is multiplied twice in one call: rounded, and then
the rounding's remainder. Together that is 14 bits, an error of 0.01 %; reading the weights takes longer than either.
"""

import functools
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST = 63  # of an input: pairs of products are summed in 16 bits, and 2 * 127 * 127 just fits
FINER = 2 * LARGEST  # what rounding leaves is at most half, so it can be multiplied by this
# inputs that meet weights of 0: with both in every row FBGEMM chooses exactly the scale 1 and the zero point 64
BOUNDS = (-64.0, 191.0)
PADDING = 4  # columns for them; FBGEMM takes four at a time


class PackedInt8:
    """A weight (o i) of int8 values and a scale (o) for each row, in FBGEMM's order and only there."""

    def __init__(self, values: Tensor, scale: Tensor) -> None:
        padded = F.pad(values, (0, PADDING))
        self.size = values.numel()  # weights, a byte each
        self.scale = scale.float()
        with warnings.catch_warnings():
            # PyTorch means to remove it one day, which is why `refusal` tries it first
            warnings.filterwarnings("ignore", message="fbgemm_")
            self._packed = torch.fbgemm_pack_quantized_matrix(padded)
        self._sums = padded.sum(1, dtype=torch.int32)
        self._zeros = torch.zeros(len(values))
        self._shape = values.new_empty(1).expand(padded.shape)  # only its shape is read

    def __call__(self, x: Tensor) -> Tensor:
        """x (b i) float32 to (b o) float32."""
        step = (x.abs().amax(-1, keepdim=True) / LARGEST).clamp_(min=torch.finfo(torch.float32).tiny)
        exact = x / step
        rounded = exact.round()
        twice = x.new_empty(2, *x.shape[:-1], x.shape[-1] + PADDING)
        inputs = twice[..., :-PADDING]
        inputs[0] = rounded
        torch.sub(exact, rounded, out=rounded)
        torch.round(rounded.mul_(FINER), out=inputs[1])
        twice[..., -PADDING:] = 0
        twice[..., -PADDING] = BOUNDS[0]
        twice[..., 1 - PADDING] = BOUNDS[1]
        y = torch.fbgemm_linear_int8_weight_fp32_activation(
            twice.flatten(0, 1), self._shape, self._packed, self._sums, 1.0, 0, self._zeros
        )
        coarse, fine = y.view(2, len(x), -1)
        return coarse.add_(fine, alpha=1 / FINER).mul_(self.scale).mul_(step)

    def write(self, x: Tensor, out: Tensor) -> None:
        """See RowProduct."""
        out.copy_(self(x))

    def add(self, x: Tensor, out: Tensor) -> None:
        """See RowProduct."""
        out += self(x)


@functools.cache
def refusal() -> str | None:
    """Why int8 products do not run here; None where a small product came out exactly."""
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        return "this PyTorch has no FBGEMM, which is for x86"
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-127, 128, (40, 96), generator=generator, dtype=torch.int8)
    x = torch.randint(-LARGEST, LARGEST + 1, (3, 96), generator=generator).float()
    x[:, 0] = LARGEST  # so that nothing is rounded
    try:
        with warnings.catch_warnings():
            # said once a process: PyTorch means to remove them one day, which is why they are tried first
            warnings.filterwarnings("ignore", message="fbgemm_")
            y = PackedInt8(values, torch.ones(len(values)))(x)
    except (AttributeError, RuntimeError) as error:
        return f"FBGEMM does not run here ({str(error).splitlines()[0]})"
    return None if torch.equal(y, x @ values.float().t()) else "FBGEMM rounds otherwise than expected"
