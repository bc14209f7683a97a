"""A decoder-only Transformer to compare with: one small, strong module, many published sizes by configuration.

For `bench` alone; it loads nobody's weights. Shapes: k heads of keys and values, t keys, r rotated features.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimamba_cli import ops


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """What tells one published decoder from another, as far as speed and memory go."""

    d_model: int
    n_layer: int
    n_head: int
    n_kv_head: int
    d_ff: int
    vocab_size: int
    norm: Literal["rms", "layer"] = "rms"
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    parallel: bool = False  # attention and MLP read one norm and are added together (Phi)
    bias: bool = False
    rotary_share: float = 1.0  # of a head's features that are rotated
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tied: bool = False  # the head is the embedding

    def __post_init__(self) -> None:
        if self.d_model % self.n_head or self.n_head % self.n_kv_head:
            raise ValueError(f"{self.n_head} heads of {self.n_kv_head} keys do not divide a width of {self.d_model}")

    @property
    def head_dim(self) -> int:
        """Features per head p."""
        return self.d_model // self.n_head

    @property
    def rotary_dim(self) -> int:
        """Features per head that are rotated, an even number."""
        return int(self.head_dim * self.rotary_share) // 2 * 2

    @property
    def layer_weights(self) -> int:
        """Weights of all layers' matrices: what every token is multiplied with."""
        attention = self.d_model * self.head_dim * (2 * self.n_head + 2 * self.n_kv_head)
        return self.n_layer * (attention + (3 if self.mlp == "swiglu" else 2) * self.d_model * self.d_ff)

    @property
    def step_weights(self) -> int:
        """Weights that one decoding step has to read: the layers and the head."""
        return self.layer_weights + self.d_model * self.vocab_size

    @property
    def weights(self) -> int:
        """Weights of all matrices."""
        return self.step_weights + (0 if self.tied else self.d_model * self.vocab_size)

    @property
    def kv_values(self) -> int:
        """Keys and values kept for a token."""
        return 2 * self.n_layer * self.n_kv_head * self.head_dim


class Cache(Protocol):
    """Keys and values of what was read."""

    def extend(self, layer: int, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Takes k, v (b k l p) of positions (l); returns all that attention may see (b k t p)."""
        ...


class GrowingCache:
    """Lengthened by concatenation at every step, as Hugging Face's default cache is."""

    def __init__(self, config: TransformerConfig) -> None:
        self.layers: list[tuple[Tensor, Tensor] | None] = [None] * config.n_layer

    def extend(self, layer: int, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """See Cache; positions must follow those that are kept."""
        old = self.layers[layer]
        if old is not None:
            k, v = torch.cat([old[0], k], dim=2), torch.cat([old[1], v], dim=2)
        self.layers[layer] = (k, v)
        return k, v


class FixedCache:
    """Room for `length` tokens, written in place; attention sees the first `visible`.

    A CUDA graph keeps its addresses and its `visible`, whatever the position that it writes to.
    """

    def __init__(
        self, config: TransformerConfig, batch: int, length: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (config.n_layer, 2, batch, config.n_kv_head, length, config.head_dim)
        self.kv = torch.zeros(shape, device=device, dtype=dtype)
        self.visible = length

    def extend(self, layer: int, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """See Cache; what stands at the positions is overwritten."""
        keys, values = self.kv[layer]
        keys.index_copy_(2, positions, k)
        values.index_copy_(2, positions, v)
        return keys[:, :, : self.visible], values[:, :, : self.visible]


class Norm(nn.Module):
    """RMS or layer norm."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.weight = nn.Parameter(torch.ones(config.d_model))
        self.bias = nn.Parameter(torch.zeros(config.d_model)) if config.norm == "layer" else None

    def forward(self, x: Tensor) -> Tensor:
        """x (b l d) to (b l d)."""
        if self.bias is None:
            return ops.rms_norm(x, self.weight, self.eps, x.dtype)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class Attention(nn.Module):
    """Rotary multi-head attention, heads of keys shared by groups where n_kv_head < n_head."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        rows = (config.n_head + 2 * config.n_kv_head) * config.head_dim
        self.qkv = nn.Linear(config.d_model, rows, bias=config.bias)
        self.out = nn.Linear(config.d_model, config.d_model, bias=config.bias)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], positions: Tensor, cache: Cache | None, mask: Tensor | None
    ) -> Tensor:
        """x (b l d) to (b l d); see Transformer.forward."""
        c = self.config
        heads = self.qkv(x).unflatten(-1, (-1, c.head_dim))  # (b l h+2k p)
        qk = rotate(heads[:, :, : c.n_head + c.n_kv_head], *rope)  # queries and keys in one go
        q, k = qk.transpose(1, 2).split([c.n_head, c.n_kv_head], dim=1)  # (b h l p), (b k l p)
        v = heads[:, :, c.n_head + c.n_kv_head :].transpose(1, 2)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v, positions)
        causal = mask is None and q.shape[2] > 1
        if causal and k.shape[2] != q.shape[2]:
            raise ValueError(f"{q.shape[2]} tokens after {k.shape[2] - q.shape[2]} others need a mask")
        grouped = c.n_kv_head != c.n_head
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)
        return self.out(y.transpose(1, 2).flatten(2))


def rotary_table(config: TransformerConfig, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines (l 1 r) of positions (l). Source: Su et al. 2021, arXiv:2104.09864."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    half = torch.arange(0, config.rotary_dim, 2, device=positions.device, dtype=wide)
    angles = positions[:, None].to(wide) * config.rope_theta ** (-half / config.rotary_dim)  # (l r/2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], -1)[:, None].to(dtype), torch.cat([-sin, sin], -1)[:, None].to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (b l h p) with its first r features turned by the angles of (l 1 r)."""
    r = cos.shape[-1]
    part = x[..., :r]
    turned = torch.addcmul(part * cos, part.roll(r // 2, -1), sin)
    return turned if r == x.shape[-1] else torch.cat([turned, x[..., r:]], dim=-1)


class MLP(nn.Module):
    """SwiGLU with gate and value in one product, or two linear maps around a GELU."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gated = config.mlp == "swiglu"
        self.up = nn.Linear(config.d_model, config.d_ff * (2 if self.gated else 1), bias=config.bias)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (b l d) to (b l d)."""
        if not self.gated:
            return self.down(F.gelu(self.up(x), approximate="tanh"))
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * value)


class Layer(nn.Module):
    """Attention and MLP, one after the other or side by side."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = Norm(config)
        self.attention = Attention(config, layer)
        self.mlp_norm = None if config.parallel else Norm(config)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], positions: Tensor, cache: Cache | None, mask: Tensor | None
    ) -> Tensor:
        """x (b l d) to (b l d); see Transformer.forward."""
        normed = self.attention_norm(x)
        attended = self.attention(normed, rope, positions, cache, mask)
        if self.mlp_norm is None:
            return x + attended + self.mlp(normed)
        x = x + attended
        return x + self.mlp(self.mlp_norm(x))


class Transformer(nn.Module):
    """Embedding, layers, norm, head."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.n_layer))
        self.norm = Norm(config)
        self.head = None if config.tied else nn.Linear(config.d_model, config.vocab_size, bias=config.bias)

    def forward(self, ids: Tensor, positions: Tensor, cache: Cache | None = None, mask: Tensor | None = None) -> Tensor:
        """Ids (b l) that stand at positions (l) to hidden states (b l d).

        Without a mask attention is causal; a mask (... l t) is boolean (True: seen) or added to the scores. A single
        token sees all that the cache shows. Raises ValueError for several tokens after cached ones without a mask.
        """
        x = self.embedding(ids)
        rope = rotary_table(self.config, positions, x.dtype)
        for layer in self.layers:
            x = layer(x, rope, positions, cache, mask)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (... d) to scores (... v)."""
        return F.linear(hidden, self.embedding.weight) if self.head is None else self.head(hidden)
