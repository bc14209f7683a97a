"""One token through a merged model, in memory whose addresses never change: a CUDA graph can record the step."""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from omnimamba_cli.config import Mamba2Config, Task
from omnimamba_cli.model.omnimamba import OmniMamba
from omnimamba_cli.model.quantized import scaled_linear
from omnimamba_cli.model.state import InferenceState
from omnimamba_cli.ops.chips import at
from omnimamba_cli.ops.reference import Convolution, Last, Squares
from omnimamba_cli.ops.step import StepKernels
from omnimamba_cli.ops.step_plans import BatchPlan


@dataclass(frozen=True)
class Product:
    """A norm and the linear map after it; weights of one byte have a scale for each row."""

    norm: Tensor  # (c)
    weight: Tensor  # (r c)
    scale: Tensor | None  # (r) float32

    @classmethod
    def of(cls, norm: Tensor, linear: nn.Module) -> Self:
        """The tensors of a module, narrow ones with their scale."""
        return cls(norm.detach(), linear.weight.detach(), getattr(linear, "scale", None))


@dataclass(frozen=True)
class StepLayer:
    """What a step needs of one layer."""

    into: Product
    conv: Tensor  # (k c), taps first: a step reads neighbouring channels together
    bias: Tensor
    dt_bias: Tensor
    A_log: Tensor
    D: Tensor
    out: Product


@dataclass(frozen=True)
class Batch:
    """What only a step of many rows needs."""

    plan: BatchPlan
    normed: Tensor  # (rows d), the normed residual
    parts: Tensor  # (splits rows d): out_proj's output, whose sum over splits joins the residual
    gated: Squares  # of the input of out_proj, for its norm


class StepMemory:
    """Everything that a step reads and writes, for `rows` sequences; ring, ssm and last are their state.

    See ops/reference.py for these. With a `plan` the rows go through the kernels for many rows, else through those for
    few.
    """

    def __init__(
        self,
        config: Mamba2Config,
        rows: int,
        vocabulary: int,
        like: Tensor,
        state_dtype: torch.dtype,
        plan: BatchPlan | None = None,
    ) -> None:
        c, device = config, like.device

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(*shape, device=device, dtype=dtype)

        self.residual = zeros(rows, c.d_model)
        # matrix units want the model's dtype; few rows go without them, and float32 costs those no time
        between = like.dtype if plan else torch.float32
        self.proj = zeros(rows, c.d_in_proj, dtype=between)
        self.gated = zeros(rows, c.d_inner, dtype=between)
        self.logits = zeros(rows, vocabulary)
        self.ring = zeros(c.n_layer, rows, c.d_conv, c.conv_dim, dtype=between)
        self.ssm = zeros(c.n_layer, rows, c.nheads, c.headdim, c.d_state, dtype=state_dtype)
        self.last = Last(
            zeros(c.n_layer, rows, c.d_inner, dtype=between),
            zeros(c.n_layer, rows, c.ngroups * c.d_state, dtype=between),
            zeros(c.n_layer, rows, c.nheads),
        )
        self.pending = False  # whether ssm lacks the token in `last`
        self.position = zeros(rows, dtype=torch.int64)  # of the token that the next step reads
        self.busy = False  # while a decoding that has not ended uses it
        self.batch: Batch | None = None
        if plan is not None:
            # the library's product has its inputs' dtype
            summed = like.dtype if plan.out.method == "library" else torch.float32
            sums = c.nheads * plan.mixer.programs(c.headdim)
            self.batch = Batch(
                plan,
                normed=zeros(rows, c.d_model, dtype=like.dtype),
                parts=zeros(plan.out.splits, rows, c.d_model, dtype=summed),
                gated=Squares(zeros(rows, sums), c.d_inner, c.norm_eps),
            )

    def new_state(self) -> InferenceState:
        """A state before the first token for a prefill of all rows; its ssm is this memory's own."""
        self.ssm.zero_()
        n_layer, rows, k, c = self.ring.shape
        return InferenceState(self.ring.new_zeros(n_layer, rows, k - 1, c), self.ssm)

    def spread(self, other: "StepMemory", rows: Tensor) -> None:
        """Copy what a prefill left in another memory: row i here becomes a copy of row rows[i] there."""
        torch.index_select(other.ssm, 1, rows, out=self.ssm)
        self.ring.copy_(other.ring[:, rows])  # may be of another dtype
        self.pending = False
        self.position.copy_(other.position[rows])
        self.logits.copy_(other.logits[rows])

    def take(self, state: InferenceState) -> None:
        """Go on where a prefill ended; its ssm may be this memory's own."""
        k = self.ring.shape[2]
        for i in range(k - 1):
            # conv[i] is the input of time position - (k - 1) + i
            self.ring[:, :, (state.position + 1 + i) % k] = state.conv[:, :, i]
        if state.ssm is not self.ssm:
            self.ssm.copy_(state.ssm)
        self.pending = False
        self.position.fill_(state.position - 1)  # drawing the next token adds one, see ops.draw.advance


class Stepper:
    """The layers and head of one merged model."""

    def __init__(self, model: OmniMamba, task: Task, kernels: StepKernels) -> None:
        self.config = model.config.backbone
        self.kernels = kernels
        self.layers = [_layer(block) for block in model.layers]
        norm = model.norm_f.weight
        narrow = model.narrow_heads[task] if task in model.narrow_heads else None  # noqa: SIM401 (a ModuleDict has no get)
        self.head = Product(norm, model.head(task).detach(), None) if narrow is None else Product.of(norm, narrow)

    def memory(self, rows: int, vocabulary: int, state_dtype: torch.dtype) -> StepMemory:
        """Memory for `rows` sequences with scores for so many tokens."""
        c, like = self.config, self.head.norm
        plan = self.kernels.batch_plan(rows, self.layers[0].into.weight, like)
        return StepMemory(c, rows, vocabulary, like, state_dtype, plan)

    def step(self, memory: StepMemory) -> None:
        """From memory.residual (one embedded token a row) to memory.logits; the state advances."""
        with at(memory.residual.device):
            if memory.batch is not None:
                self._step_batch(memory, memory.batch)
            else:
                self._step_few(memory)
        memory.pending = not memory.pending

    def _step_few(self, m: StepMemory) -> None:
        for i, layer in enumerate(self.layers):
            self._product(m.residual, layer.into, m.proj, chained=i > 0)
            self._mix(m, i)
            self._product(m.gated, layer.out, m.residual, add=True)
        self._product(m.residual, self.head, m.logits)

    def _step_batch(self, m: StepMemory, b: Batch) -> None:
        ops, plan, parts = self.kernels, b.plan, None
        ours = plan.into.method != "library"  # our in_proj also convolves; after torch.mm the mixer does
        for i, layer in enumerate(self.layers):
            self._join_norm(m, b, parts, layer.into.norm)
            convolution = None
            if ours:
                convolution = Convolution(m.ring[i], m.position, layer.conv, layer.bias, self.config.d_inner)
            ops.product(b.normed, layer.into.weight, layer.into.scale, m.proj[None], plan.into, convolution=convolution)
            norm, squares = layer.out.norm, b.gated.parts
            self._mix(m, i, plan=plan.mixer, norm=norm, squares=squares, convolved=ours, chained=ours)
            ops.product(m.gated, layer.out.weight, layer.out.scale, b.parts, plan.out)
            parts = b.parts
        self._score_batch(m, b, parts)

    def _score_batch(self, m: StepMemory, b: Batch, parts: Tensor | None) -> None:
        self._join_norm(m, b, parts, self.head.norm)
        self.kernels.product(b.normed, self.head.weight, self.head.scale, m.logits[None], b.plan.head)

    def read(self, x: Tensor, memory: StepMemory, dtype: torch.dtype) -> None:
        """Read whole prefixes x (rows l d), embedded with their positions: state and logits after them go into memory.

        Between two kernels and in the products numbers are of `dtype`; where float16 was too narrow for them the logits
        are not finite. What memory held before is overwritten. Needs the kernels' `reading`.
        """
        with at(x.device):
            self._read(x, memory, dtype)

    def _read(self, x: Tensor, memory: StepMemory, dtype: torch.dtype) -> None:
        m, eps, groups, ops = memory, self.config.norm_eps, self.config.ngroups, self.kernels.reading
        assert ops is not None
        m.pending = False
        m.ring.zero_()  # a prefix shorter than the convolution leaves some slots unwritten
        residual, y = x.to(torch.float32, copy=True), None
        for i, layer in enumerate(self.layers):
            normed = ops.add_norm(residual, y, layer.into.norm, eps, dtype)
            zxBCdt = scaled_linear(normed, ops.cast(layer.into.weight, dtype), layer.into.scale)
            xBC, dt = ops.conv_dt(zxBCdt, layer.conv, layer.bias, layer.dt_bias, m.ring[i])
            y = ops.scan(xBC, dt, layer.A_log, layer.D, m.ssm[i], groups=groups)
            y = ops.gate_norm(y, zxBCdt, layer.out.norm, eps)
            y = scaled_linear(y, ops.cast(layer.out.weight, dtype), layer.out.scale)
        assert y is not None
        m.residual.copy_(residual[:, -1] + y[:, -1])
        if m.batch is None:
            self._product(m.residual, self.head, m.logits, chained=False)
        else:
            self._score_batch(m, m.batch, None)
        m.position.fill_(x.shape[1] - 1)

    def _product(self, x: Tensor, p: Product, out: Tensor, *, add: bool = False, chained: bool = True) -> None:
        self.kernels.normed_product(x, p.norm, self.config.norm_eps, p.weight, p.scale, out, add=add, chained=chained)

    def _mix(self, m: StepMemory, i: int, **how: Any) -> None:
        layer = self.layers[i]
        weights = (layer.conv, layer.bias, layer.dt_bias, layer.A_log, layer.D)
        self.kernels.mixer_step(
            m.proj, m.ring[i], m.ssm[i], m.last.layer(i), m.position, *weights, m.gated,
            groups=self.config.ngroups, pending=m.pending, **how,
        )  # fmt: skip

    def _join_norm(self, m: StepMemory, b: Batch, parts: Tensor | None, norm: Tensor) -> None:
        # without parts this is the first kernel of a step
        after_ours = parts is not None and b.plan.out.method != "library"
        self.kernels.join_norm(m.residual, parts, b.gated, norm, self.config.norm_eps, b.normed, chained=after_ours)


def _layer(block: nn.Module) -> StepLayer:
    mixer = block.mixer
    return StepLayer(
        into=Product.of(block.norm.weight, mixer.in_proj),
        conv=mixer.conv1d.weight.detach()[:, 0].t().contiguous(),
        bias=mixer.conv1d.bias.detach(),
        dt_bias=mixer.dt_bias.detach(),
        A_log=mixer.A_log.detach(),
        D=mixer.D.detach(),
        out=Product.of(mixer.norm.weight, mixer.out_proj),
    )


def embedding_tables(model: OmniMamba, task: Task, *, piece: int = 2048) -> tuple[Tensor, Tensor]:
    """The task's tables: embeddings (v d) and positions (positions d), which a step adds up to its next input.

    Image codes go through their MLP here, all entries once, instead of one entry in each step.
    """
    if task == "mmu":
        return model.head("mmu").detach(), model.mmu_positions.detach()
    entries = model.head("t2i").detach()
    with torch.inference_mode():
        # piece by piece: the MLP's hidden layer is four times as wide
        return torch.cat([model.image_mlp(part) for part in entries.split(piece)]), model.t2i_positions.detach()
