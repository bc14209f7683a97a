"""One token of a few sequences through a merged model on a CPU, with as little work and memory as a step can have.

The arithmetic is that of the model's own forward, in float32. Results are written straight into the buffers they are
read from, and what does not change is prepared once. The state is transposed, (n p) instead of (p n), to have the
longer axis inside.
"""

import math
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimamba_cli.config import Mamba2Config, Task
from omnimamba_cli.model.omnimamba import OmniMamba
from omnimamba_cli.model.state import InferenceState
from omnimamba_cli.ops.row_products import RowProduct, row_product


@dataclass(frozen=True)
class Norm:
    """rms_norm in three passes over a row: its Euclidean length, a division, a product with `gain`."""

    gain: Tensor  # (c), the weight times sqrt(c)
    eps: Tensor  # (), the root of c * eps

    @classmethod
    def of(cls, weight: Tensor, eps: float) -> Self:
        """From a norm's weight (c)."""
        c = len(weight)
        return cls(weight.detach().float() * math.sqrt(c), torch.tensor(math.sqrt(c * eps)))

    def __call__(self, x: Tensor, length: Tensor, out: Tensor) -> Tensor:
        """x (b c) normed, into out (b c), which may be x; length (b 1) is overwritten."""
        torch.linalg.vector_norm(x, dim=-1, keepdim=True, out=length)
        torch.hypot(length, self.eps, out=length)
        torch.div(x, length, out=out)
        return out.mul_(self.gain)


@dataclass(frozen=True)
class RowLayer:
    """What a step needs of one layer."""

    norm: Norm
    into: RowProduct
    taps: list[Tensor]  # k tensors (k 1 c): taps[i][j] is for ring slot j while the newest input is in slot i
    bias: Tensor  # (c)
    dt_bias: Tensor  # (h)
    A: Tensor  # (h) < 0
    D: Tensor  # (e): each head's value, repeated for its channels
    gated_norm: Norm
    out: RowProduct


class RowMemory:
    """What a step reads and writes, for `rows` sequences that have read equally many tokens."""

    def __init__(self, config: Mamba2Config, state: InferenceState, vocabulary: int) -> None:
        c, rows = config, state.ssm.shape[1]
        e, g, n, k = c.d_inner, c.ngroups, c.d_state, c.d_conv
        self.position = state.position
        # time t stands in slot t % k, as the model's history would have it
        self.ring = torch.zeros(c.n_layer, k, rows, c.conv_dim)
        for i in range(k - 1):
            self.ring[:, (state.position + 1 + i) % k] = state.conv[:, :, i]
        heads = state.ssm.view(c.n_layer, rows, g, e // g, n)
        self.ssm = heads.mT.contiguous()  # (n_layer b g n e/g)
        self._buffers(c, rows, vocabulary)

    def _buffers(self, c: Mamba2Config, rows: int, vocabulary: int) -> None:
        e, g, n, h = c.d_inner, c.ngroups, c.d_state, c.nheads
        self.residual = torch.empty(rows, c.d_model)
        self.normed = torch.empty(rows, c.d_model)
        self.length = torch.empty(rows, 1)
        self.logits = torch.empty(rows, vocabulary)
        self.proj = torch.empty(rows, c.d_in_proj)
        self.z, self.new, self.dt = self.proj.split([e, c.conv_dim, h], dim=-1)
        self.window = torch.empty(c.d_conv, rows, c.conv_dim)
        self.xBC = torch.empty(rows, c.conv_dim)
        self.x, B, C = self.xBC.split([e, g * n, g * n], dim=-1)
        self.B, self.C = B.view(rows, g, n, 1), C.view(rows, g, 1, n)
        self.heads = self.x.view(rows, h, c.headdim)
        self.decay, self.grown = torch.empty(rows, g, 1, e // g), torch.empty(rows, g, 1, e // g)
        # the same memory by heads
        self.head_decay, self.head_grown = (t.view(rows, h, c.headdim) for t in (self.decay, self.grown))
        self.y = torch.empty(rows, e)
        self.slots = [list(layer) for layer in self.ring]
        self.rings = list(self.ring)
        # each row's state with its own views of the buffers: one row's state of a layer fits the second-level cache
        read = list(zip(self.decay, self.B, self.grown, self.C, self.y.view(rows, g, 1, e // g), strict=True))
        self.states = [list(zip(layer, read, strict=True)) for layer in self.ssm]

    def select(self, rows: Tensor, config: Mamba2Config) -> None:
        """Keep the given rows (b') alone, in their order."""
        self.ring, self.ssm = self.ring[:, :, rows], self.ssm[:, rows]
        self._buffers(config, len(rows), self.logits.shape[1])


class RowStepper:
    """The layers and head of one merged model. Keeps no reference to the model itself."""

    def __init__(self, model: OmniMamba, task: Task) -> None:
        self.config = model.config.backbone
        eps = self.config.norm_eps
        self.layers = [_layer(block, self.config) for block in model.layers]
        self.norm = Norm.of(model.norm_f.weight, eps)
        narrow = model.narrow_heads[task] if task in model.narrow_heads else None  # noqa: SIM401 (a ModuleDict has no get)
        self.head = row_product(model.head(task).detach() if narrow is None else narrow)

    def step(self, m: RowMemory) -> Tensor:
        """m.residual (one embedded token a row) to m.logits (b v); the state advances."""
        turn = m.position % self.config.d_conv
        for i, layer in enumerate(self.layers):
            layer.into.write(layer.norm(m.residual, m.length, m.normed), m.proj)
            self._mix(layer, m, i, turn)
            layer.out.add(layer.gated_norm(m.y, m.length, m.y), m.residual)
        self.head.write(self.norm(m.residual, m.length, m.normed), m.logits)
        m.position += 1
        return m.logits

    def _mix(self, layer: RowLayer, m: RowMemory, i: int, turn: int) -> None:
        """m.proj to m.y (b e): convolution, state and gate of layer i; `turn` is the ring slot of this token."""
        m.slots[i][turn].copy_(m.new)
        torch.mul(m.rings[i], layer.taps[turn], out=m.window)
        torch.sum(m.window, 0, out=m.xBC)
        F.silu(m.xBC.add_(layer.bias), inplace=True)
        dt = F.softplus(m.dt + layer.dt_bias)  # (b h)
        m.head_decay.copy_((dt * layer.A).exp_()[..., None])
        torch.mul(m.heads, dt[..., None], out=m.head_grown)
        for state, (decay, B, grown, C, y) in m.states[i]:
            torch.bmm(C, state.mul_(decay).addcmul_(B, grown), out=y)
        m.y.addcmul_(m.x, layer.D).mul_(F.silu(m.z, inplace=True))


def _layer(block: nn.Module, c: Mamba2Config) -> RowLayer:
    mixer = block.mixer
    k = c.d_conv
    taps = mixer.conv1d.weight.detach()[:, 0].t().float()  # (k c), the last is the present
    order = torch.arange(k)
    return RowLayer(
        norm=Norm.of(block.norm.weight, c.norm_eps),
        into=row_product(mixer.in_proj),
        taps=[taps[(order - turn - 1) % k][:, None].contiguous() for turn in range(k)],
        bias=mixer.conv1d.bias.detach().float(),
        dt_bias=mixer.dt_bias.detach().float(),
        A=-mixer.A_log.detach().float().exp(),
        D=mixer.D.detach().float().repeat_interleave(c.headdim),
        gated_norm=Norm.of(mixer.norm.weight, c.norm_eps),
        out=row_product(mixer.out_proj),
    )
