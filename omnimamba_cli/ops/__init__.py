"""The arithmetic of Mamba-2: one signature an operation, one reference, backends chosen at the call.

Legend of shapes, everywhere in this project: b batch, l sequence, d model width, e inner width, h heads,
p head width, g groups, n state size, k convolution taps, c channels, q chunk, v vocabulary.
Capital A B C D are the state-space model's parameters (Dao & Gu 2024, arXiv:2405.21060).
"""

from omnimamba_cli.ops.reference import ssd_step
from omnimamba_cli.ops.registry import (
    block_module,
    block_refusal,
    causal_conv,
    gated_rms_norm,
    rms_norm,
    ssd_scan,
    summed_cross_entropy,
)

__all__ = [
    "block_module",
    "block_refusal",
    "causal_conv",
    "gated_rms_norm",
    "rms_norm",
    "ssd_scan",
    "ssd_step",
    "summed_cross_entropy",
]
