"""The operations of one decoding step, by Triton kernels or in plain PyTorch: one signature each, working in place.

registry.step_kernels chooses the backend.
"""

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from omnimamba_cli.ops import reference, step_plans
from omnimamba_cli.ops.draw import DrawBuffers, DrawRule, advance
from omnimamba_cli.ops.reference import Convolution, Last, Squares
from omnimamba_cli.ops.step_plans import BatchPlan, MixerPlan, ProductPlan


@dataclass(frozen=True)
class StepKernels:
    """The kernels of one backend: Triton modules, or None for plain PyTorch.

    `pdl` (programmatic dependent launch, NVIDIA from compute capability 9): a kernel may start before the one before it
    ends. In the methods, `chained` says that the kernel before is one of ours in the same step, so that pdl is safe.
    """

    products: ModuleType | None = None  # ops.triton_step
    batches: ModuleType | None = None  # ops.triton_batch
    drawing: ModuleType | None = None  # ops.triton_draw
    reading: ModuleType | None = None  # ops.triton_prefill; without it a prefix goes through the model's own forward
    pdl: bool = False
    large: bool = True  # see chips.is_large

    @property
    def name(self) -> str:
        """The backend's name, as the registry has it."""
        return "torch" if self.products is None else "triton"

    def batch_plan(self, batch: int, weight: Tensor, model: Tensor) -> BatchPlan | None:
        """The plan of a step of many rows; None for few rows, which go through normed_product.

        `weight` is any weight of a product, `model` any tensor of the model's dtype.
        """
        if self.batches is None:
            return None
        return step_plans.batch_plan(batch, weight.dtype, model.dtype, large=self.large)

    def normed_product(
        self,
        x: Tensor,
        norm: Tensor,
        eps: float,
        weight: Tensor,
        scale: Tensor | None,
        out: Tensor,
        *,
        add: bool = False,
        chained: bool = True,
    ) -> None:
        """See reference.normed_product; for few rows, without a batch plan."""
        if self.products is None:
            reference.normed_product(x, norm, eps, weight, scale, out, add=add)
            return
        plan = step_plans.vector_plan(len(x), x.shape[1], weight.dtype)
        self.products.normed_product(x, norm, eps, weight, scale, out, add=add, plan=plan, pdl=self.pdl and chained)

    def mixer_step(
        self,
        proj: Tensor,
        ring: Tensor,
        ssm: Tensor,
        last: Last,
        position: Tensor,
        conv: Tensor,
        bias: Tensor,
        dt_bias: Tensor,
        A_log: Tensor,
        D: Tensor,
        out: Tensor,
        *,
        groups: int,
        pending: bool,
        plan: MixerPlan | None = None,
        norm: Tensor | None = None,
        squares: Tensor | None = None,
        convolved: bool = False,
        chained: bool = True,
    ) -> None:
        """See reference.mixer_step."""
        how: dict[str, Any] = {"groups": groups, "pending": pending}
        how |= {"norm": norm, "squares": squares, "convolved": convolved}
        given = (proj, ring, ssm, last, position, conv, bias, dt_bias, A_log, D, out)
        if self.products is None:
            reference.mixer_step(*given, **how)
            return
        plan = plan or step_plans.mixer_plan(len(proj))
        self.products.mixer_step(*given, plan=plan, pdl=self.pdl and chained, **how)

    def join_norm(
        self,
        residual: Tensor,
        parts: Tensor | None,
        squares: Squares,
        norm: Tensor,
        eps: float,
        out: Tensor,
        *,
        chained: bool = True,
    ) -> None:
        """See reference.join_norm."""
        assert self.batches is not None
        self.batches.join_norm(residual, parts, squares, norm, eps, out, pdl=self.pdl and chained)

    def product(
        self,
        x: Tensor,
        weight: Tensor,
        scale: Tensor | None,
        out: Tensor,
        plan: ProductPlan,
        *,
        convolution: Convolution | None = None,
        chained: bool = True,
    ) -> None:
        """See reference.product; the plan "library" (torch.mm) takes neither scale nor convolution."""
        assert self.batches is not None
        if plan.method == "library":
            assert convolution is None
            torch.mm(x, weight.mT, out=out[0])
        else:
            pdl = self.pdl and chained
            self.batches.product(x, weight, scale, out, plan=plan, convolution=convolution, pdl=pdl)

    def draws(self, rule: DrawRule) -> bool:
        """Whether `draw` chooses the token itself; else it must be given one."""
        return self.drawing is not None and not rule.ordered

    def draw(
        self, buffers: DrawBuffers, table: Tensor, places: Tensor, rule: DrawRule, chosen: Tensor | None = None
    ) -> None:
        """Record the token and make the next input, see draw.advance; without `chosen` draw the token, too."""
        if self.drawing is not None:
            self.drawing.draw(buffers, table, places, rule, chosen)
            return
        assert chosen is not None
        advance(buffers, table, places, chosen)
