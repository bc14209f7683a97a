"""OmniMamba (arXiv:2503.08686): one Mamba-2 backbone, two tasks, two vocabularies.

"mmu" reads pictures (patches of the towers) and writes text; "t2i" reads text and writes image codes.
Callers embed their pieces, run `forward` over any cut of the sequence, and ask `logits` where they need them.

With vocabulary "shared" (an ablation of the paper) text ids and codes are rows of one table, text first, and in
training all rows compete for the next token. Everything else is the same.
"""

from collections.abc import Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from omnimamba_cli.config import ModelConfig, Task
from omnimamba_cli.errors import InputError
from omnimamba_cli.model.mamba2 import Block, RMSNorm, Share, parts
from omnimamba_cli.model.state import InferenceState
from omnimamba_cli.ops import halves
from omnimamba_cli.ops.chips import at


def _mlp(widths: list[int], *, approximate: str = "none", bias: bool = True) -> nn.Sequential:
    """Linear maps with a GELU between each two; a map's index in the Sequential is in the names of its weights."""
    layers: list[nn.Module] = []
    for i, o in pairwise(widths):
        layers += [halves.Linear(i, o, bias=bias), nn.GELU(approximate=approximate)]
    return nn.Sequential(*layers[:-1])


def check_positions(tokens: int, limit: int, task: Task) -> None:
    """Raises InputError where a sequence of so many tokens is longer than the task's table of positions."""
    if tokens > limit:
        raise InputError(
            f"{tokens} tokens are past the model's limit of {limit} for {task}",
            hint="shorten the text or lower --max-new-tokens",
        )


class OmniMamba(nn.Module):
    """The language model with its embeddings, projector and LoRA; towers and image tokenizer are separate modules."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        d, codebook = config.backbone.d_model, config.vq.codebook_size
        self.shared = config.vocabulary == "shared"
        if self.shared:
            self.vocabulary = nn.Embedding(config.text.vocab_size + codebook, d)
            tables = [self.vocabulary.weight]
        else:
            self.text_embedding = nn.Embedding(config.text.vocab_size, d)
            self.image_embedding = nn.Embedding(codebook, d)
            tables = [self.text_embedding.weight, self.image_embedding.weight]
        self.image_mlp = _mlp([d, config.image_mlp_mult * d, d, d])
        self.caption_mlp = _mlp([d, d, d], approximate="tanh", bias=False)
        self.t2i_positions = nn.Parameter(torch.empty(config.t2i_positions, d))
        self.mmu_positions = nn.Parameter(torch.empty(config.mmu_positions, d))
        v = config.vision_dim
        self.projector = _mlp([v, config.projector_mult * v, d, d]) if v else nn.Sequential()
        self.layers = nn.ModuleList(Block(config.backbone) for _ in range(config.backbone.n_layer))
        self.norm_f = RMSNorm(d, config.backbone.norm_eps)
        self.narrow_heads = nn.ModuleDict()  # task -> its quantized head, see model/quantized.py
        for table in (*tables, self.t2i_positions, self.mmu_positions):
            nn.init.normal_(table, std=0.02)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights (A_log, dt_bias and D may be wider)."""
        return self.norm_f.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.norm_f.weight.device

    def embed_text(self, ids: Tensor) -> Tensor:
        """Text ids (b l) of the mmu task to (b l d)."""
        return self.vocabulary(ids) if self.shared else self.text_embedding(ids)

    def embed_patches(self, patches: Tensor) -> Tensor:
        """The towers' patches (b n vision_dim) to (b n d)."""
        return self.projector(patches.to(self.dtype))

    def embed_caption(self, ids: Tensor) -> Tensor:
        """The whole prefix of a drawing, ids (b l), to (b l d)."""
        return self.caption_mlp(self.embed_text(ids))

    def embed_codes(self, codes: Tensor) -> Tensor:
        """Image codes (b l) to (b l d)."""
        if codes.numel() > self.config.vq.codebook_size:
            # more codes than entries: every entry through the MLP once, then a lookup
            return F.embedding(codes, self.image_mlp(self.head("t2i")))
        rows = self.vocabulary(codes + self.first_row("t2i")) if self.shared else self.image_embedding(codes)
        return self.image_mlp(rows)

    def new_state(self, batch: int) -> InferenceState:
        """The state before the first token of `batch` sequences."""
        return InferenceState.zeros(self.config.backbone, batch, self.device, self.dtype)

    def positions(self, task: Task) -> Tensor:
        """A task's learned table (positions d)."""
        return self.mmu_positions if task == "mmu" else self.t2i_positions

    def forward(self, x: Tensor, task: Task, state: InferenceState | None = None) -> Tensor:
        """Embedded inputs x (b l d) to hidden states (b l d), ready for `logits`.

        With a state, x continues where it stands (a whole prefix, a piece, one step) and it is updated in place.
        Raises InputError where the sequence would pass the task's table of positions.
        """
        if state is None:
            return self.together({task: x})[task]
        residual = self._placed(x, task, state.position)
        with at(x.device):
            for i, layer in enumerate(self.layers):
                residual = layer(residual, task, state.conv[i], state.ssm[i])
            state.position += x.shape[1]
            return self.norm_f(residual)

    def together(self, inputs: Mapping[Task, Tensor], *, recompute: bool = False) -> dict[Task, Tensor]:
        """Embedded inputs (b l d) of each task to its hidden states (b l d); both tasks share every layer's launches.

        With `recompute`, the backward pass runs each layer again instead of keeping what it computed inside: about a
        third more time, memory of one layer instead of all. Raises what forward raises.
        """
        # the longest first: kernels that walk along a sequence should begin with those that take longest
        ordered = sorted(inputs.items(), key=lambda item: -item[1].shape[1])
        shares = tuple(Share(task, *x.shape[:2]) for task, x in ordered)
        placed = [self._placed(x, task, 0).flatten(0, 1) for task, x in ordered]
        rows = torch.cat(placed) if len(placed) > 1 else placed[0]
        with at(rows.device):
            for layer in self.layers:
                rows = checkpoint(layer, rows, shares, use_reentrant=False) if recompute else layer(rows, shares)
            return dict(parts(self.norm_f(rows), shares))

    def _placed(self, x: Tensor, task: Task, start: int) -> Tensor:
        """x (b l d) plus the learned positions from `start` on, float32 or wider: the first residual."""
        end = start + x.shape[1]
        table = self.positions(task)
        check_positions(end, len(table), task)
        placed = x + table[start:end]
        return placed if x.dtype == torch.float64 else placed.float()

    def logits(self, hidden: Tensor, task: Task) -> Tensor:
        """Hidden states (... d) to scores over the task's own vocabulary (... v); heads are tied to the embeddings.

        With a shared vocabulary too these are the task's own rows alone: an answer is text, a drawing is codes.
        """
        if task in self.narrow_heads:
            return self.narrow_heads[task](hidden)
        return F.linear(hidden, self.head(task))

    def training_logits(self, hidden: Tensor, task: Task) -> Tensor:
        """Scores (... r) of all rows that compete for the next token in training; the task's own begin at `first_row`.

        With decoupled vocabularies they are `logits`, with a shared one all rows of text and codes. Raises ValueError
        for a quantized model with a shared vocabulary.
        """
        if not self.shared:
            return self.logits(hidden, task)
        if len(self.narrow_heads):
            raise ValueError("a quantized model scores one task's rows alone; train the model as it was stored")
        return F.linear(hidden, self.vocabulary.weight)

    def first_row(self, task: Task) -> int:
        """The row of `training_logits` at which a task's own ids begin."""
        return self.config.text.vocab_size if self.shared and task == "t2i" else 0

    def head(self, task: Task) -> Tensor:
        """The rows (v d) of a task's vocabulary: its head and, tied to it, its embedding (before the MLP of codes)."""
        if not self.shared:
            return self.text_embedding.weight if task == "mmu" else self.image_embedding.weight
        text = self.config.text.vocab_size
        return self.vocabulary.weight[:text] if task == "mmu" else self.vocabulary.weight[text:]
