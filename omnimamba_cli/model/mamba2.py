"""The Mamba-2 mixer and its residual block (Dao & Gu 2024, arXiv:2405.21060)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimamba_cli import ops
from omnimamba_cli.config import Mamba2Config, Task
from omnimamba_cli.model.lora import LoRALinear, LoRAPair
from omnimamba_cli.ops import halves
from omnimamba_cli.ops.packing import Packing


@dataclass(frozen=True)
class Share:
    """One task's sequences among the packed rows of a training step: `b` sequences of `l` rows, one after another."""

    task: Task
    b: int
    l: int


Shares = tuple[Share, ...]  # in the order of the rows


def parts(rows: Tensor, shares: Shares) -> Iterator[tuple[Task, Tensor]]:
    """Packed rows (t d) cut into each task's sequences (b l d)."""
    for share, part in zip(shares, rows.split([s.b * s.l for s in shares]), strict=True):
        yield share.task, part.view(share.b, share.l, rows.shape[-1])


class RMSNorm(nn.Module):
    """x over its root mean square, times a learned weight; in float32 inside."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x (... c) to (... c) in the dtype that the next linear map works in."""
        return ops.rms_norm(x, self.weight, self.eps, self.dtype(x.device.type))

    def dtype(self, device_type: str) -> torch.dtype:
        """The dtype that the next linear map works in: autocast's where that is on, else the weight's."""
        autocast = torch.is_autocast_enabled(device_type)
        return torch.get_autocast_dtype(device_type) if autocast else self.weight.dtype


class Mamba2(nn.Module):
    """in_proj, causal convolution, state-space scan, gated norm, out_proj."""

    def __init__(self, config: Mamba2Config) -> None:
        super().__init__()
        self.config = config
        self.in_proj = LoRALinear(config.d_model, config.d_in_proj, config)
        self.conv1d = nn.Conv1d(config.conv_dim, config.conv_dim, config.d_conv, groups=config.conv_dim)
        self.dt_bias = nn.Parameter(_initial_dt_bias(config.nheads))
        self.A_log = nn.Parameter(_initial_log_decay(config.nheads))
        self.D = nn.Parameter(torch.ones(config.nheads))
        self.norm = RMSNorm(config.d_inner, config.norm_eps)
        self.out_proj = halves.Linear(config.d_inner, config.d_model, bias=False)
        if not self.out_proj.weight.is_meta:
            with torch.no_grad():  # residual branches of a deep stack start small (GPT-2's rule)
                self.out_proj.weight /= math.sqrt(config.n_layer)

    def forward(
        self, u: Tensor, task: Task, conv_state: Tensor | None = None, ssm_state: Tensor | None = None
    ) -> Tensor:
        """u (b l d) to (b l d). The states of this layer (see InferenceState) are read and updated in place."""
        z, x, B, C, dt, history = self.before_scan(u, task, conv_state)
        # float32: in half precision exp(A_log) can overflow, and A becomes -inf
        A = -self.A_log.float().exp()
        if ssm_state is not None and u.shape[1] == 1:
            y = ops.ssd_step(ssm_state, x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], self.D)[:, None]
        else:
            y, last = ops.ssd_scan(x, dt, A, B, C, self.D, chunk_size=self.config.chunk_size, state=ssm_state)
            if ssm_state is not None:
                ssm_state.copy_(last)
        if conv_state is not None:
            conv_state.copy_(history)
        return self.after_scan(y, z)

    def before_scan(
        self, u: Tensor, task: Task, conv_state: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """z (b l e), x (b l h p), B and C (b l g n), dt (b l h) float32 and the new convolution history."""
        c = self.config
        zxBCdt = self.in_proj(u, task)  # (b l d_in_proj), perhaps padded
        # one split: its backward is one concatenation
        z, xBC, dt = zxBCdt.split([c.d_inner, c.conv_dim, zxBCdt.shape[-1] - c.d_inner - c.conv_dim], dim=-1)
        xBC, history = ops.causal_conv(xBC, self.conv1d.weight[:, 0], self.conv1d.bias, conv_state)
        x, B, C = xBC.split([c.d_inner, c.ngroups * c.d_state, c.ngroups * c.d_state], dim=-1)
        dt = F.softplus(dt[..., : c.nheads].float() + self.dt_bias.float())
        x = x.unflatten(-1, (c.nheads, c.headdim))  # (b l h p)
        B, C = (t.unflatten(-1, (c.ngroups, c.d_state)) for t in (B, C))  # (b l g n)
        return z, x, B, C, dt, history

    def after_scan(self, y: Tensor, z: Tensor) -> Tensor:
        """y (b l h p) and the gate z (b l e) to the layer's output (b l d)."""
        y = ops.gated_rms_norm(y.flatten(-2), z, self.norm.weight, self.config.norm_eps)  # (b l e)
        return self.out_proj(y)


class Block(nn.Module):
    """residual += mixer(norm(residual)); the residual stays in float32."""

    def __init__(self, config: Mamba2Config) -> None:
        super().__init__()
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.mixer = Mamba2(config)

    def forward(
        self,
        residual: Tensor,
        task: Task | Shares,
        conv_state: Tensor | None = None,
        ssm_state: Tensor | None = None,
    ) -> Tensor:
        """The next residual, float32, from residual (b l d) of one task or packed rows (t d) of the tasks' shares."""
        stateless = conv_state is None and ssm_state is None
        if stateless and isinstance(self.mixer.in_proj, LoRALinear):
            c = self.mixer.config
            if ops.block_refusal(residual, c.headdim, c.d_state, c.d_conv, c.lora_rank) is None:
                if not isinstance(task, str):
                    return self._in_one_step(residual, task, self.mixer.in_proj)
                share = Share(task, *residual.shape[:2])
                return self._in_one_step(residual.flatten(0, 1), (share,), self.mixer.in_proj).view(residual.shape)
        if not isinstance(task, str):
            # not self(...): a wrapper's hooks run once a layer
            results = [self.forward(part, name).flatten(0, 1) for name, part in parts(residual, task)]
            return torch.cat(results) if len(results) > 1 else results[0]
        # the sum promotes to the residual's float32 by itself, in one pass
        return residual + self.mixer(self.norm(residual), task, conv_state, ssm_state)

    def _in_one_step(self, rows: Tensor, shares: Shares, in_proj: LoRALinear) -> Tensor:
        """What forward computes from packed rows, as one step of autograd on CUDA: see ops/triton_block.py."""
        fast, m = ops.block_module(), self.mixer
        pairs, bound = _pairs(in_proj, shares)
        dropout = fast.Dropout()
        if in_proj.training and in_proj.dropout and pairs:
            # from the generator on the CPU, which the loop seeds every step, and without waiting for the GPU
            seed = int(torch.randint(1 << 31, (1,), device="cpu"))
            dropout = fast.Dropout(in_proj.dropout, seed)
        settings = fast.BlockSettings(
            groups=m.config.ngroups,
            d_state=m.config.d_state,
            eps=m.config.norm_eps,
            dtype=self.norm.dtype(rows.device.type),
            packing=Packing.of([(share.b, share.l) for share in shares]),
            pairs=fast.Pairs(m.config.lora_rank if pairs else 0, bound),
            scale=in_proj.scale,
            dropout=dropout,
        )
        A = torch.cat([pair.A for pair in pairs]) if pairs else None
        B = torch.cat([pair.B for pair in pairs], dim=1) if pairs else None
        next_rows: Tensor = fast.block(
            rows, self.norm.weight, in_proj.weight, A, B, m.conv1d.weight[:, 0], m.conv1d.bias, m.dt_bias, m.A_log,
            m.D, m.norm.weight, m.out_proj.weight, settings,
        )  # fmt: skip
        return next_rows


def _pairs(in_proj: LoRALinear, shares: Shares) -> tuple[list[LoRAPair], int]:
    """The tasks' LoRA pairs, each once, and how many rows use the first one (they come first)."""
    found: list[LoRAPair] = []
    bound = 0
    for share in shares:
        pair = in_proj.pair(share.task)
        if pair is None:
            return [], 0
        if pair not in found:
            found.append(pair)
        if pair is found[0]:
            bound += share.b * share.l
    return found, bound


def _initial_dt_bias(nheads: int) -> Tensor:
    """Biases (h) whose softplus is log-uniform in 0.001 to 0.1, as the paper starts."""
    dt = torch.empty(nheads)
    if dt.is_meta:  # only the shape is wanted, and for more torch would load its compiler
        return dt
    dt.uniform_(math.log(0.001), math.log(0.1)).exp_()
    return dt + torch.log(-torch.expm1(-dt))


def _initial_log_decay(nheads: int) -> Tensor:
    """Logarithms (h) of decay rates that are uniform in 1 to 16."""
    A = torch.empty(nheads)
    return A if A.is_meta else A.uniform_(1, 16).log_()
