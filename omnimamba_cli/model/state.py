"""The recurrent state of sequences: its size does not depend on their length."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from omnimamba_cli.config import Mamba2Config


@dataclass
class InferenceState:
    """The memory of all layers after `position` tokens; updated in place by the model.

    conv (n_layer b k-1 c), the last inputs of each causal convolution, in the model's dtype;
    ssm (n_layer b h p n), float32: over thousands of steps a half-precision sum drifts.
    """

    conv: Tensor
    ssm: Tensor
    position: int = 0

    @classmethod
    def zeros(cls, config: Mamba2Config, batch: int, device: torch.device, dtype: torch.dtype) -> Self:
        """The state before the first token."""
        c = config
        conv = torch.zeros(c.n_layer, batch, c.d_conv - 1, c.conv_dim, device=device, dtype=dtype)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        ssm = torch.zeros(c.n_layer, batch, c.nheads, c.headdim, c.d_state, device=device, dtype=wide)
        return cls(conv, ssm)

    @property
    def nbytes(self) -> int:
        """Bytes of both tensors."""
        return self.conv.nbytes + self.ssm.nbytes

    def select(self, rows: Tensor) -> "InferenceState":
        """A copy with the given rows (b') of the batch, in their order; a row may be repeated."""
        return InferenceState(self.conv[:, rows], self.ssm[:, rows], self.position)

    def clone(self) -> "InferenceState":
        """An independent copy."""
        return InferenceState(self.conv.clone(), self.ssm.clone(), self.position)

    def to(self, device: torch.device, dtype: torch.dtype) -> "InferenceState":
        """A copy on a device, for a model of the dtype; the sums stay as wide as `zeros` makes them."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        conv, ssm = self.conv.to(device, dtype, copy=True), self.ssm.to(device, wide, copy=True)
        return InferenceState(conv, ssm, self.position)
