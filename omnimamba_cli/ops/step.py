"""The operations of one decoding step, on Triton kernels or in plain PyTorch: one signature each, working in place.

Which backend is chosen, and why, is registry.step_kernels.
"""

from dataclasses import dataclass
from types import ModuleType

from torch import Tensor

from omnimamba_cli.ops import reference, step_plans
from omnimamba_cli.ops.draw import DrawBuffers, DrawRule, advance
from omnimamba_cli.ops.step_plans import ProductPlan


@dataclass(frozen=True)
class StepKernels:
    """One backend. `pdl`: kernels may start before the one before them ends (NVIDIA from compute capability 9)."""

    products: ModuleType | None = None  # ops.triton_step
    drawing: ModuleType | None = None  # ops.triton_draw
    reading: ModuleType | None = None  # ops.triton_prefill; without it a prefix goes through the model's own forward
    pdl: bool = False

    @property
    def name(self) -> str:
        """The backend's name, as the registry has it."""
        return "torch" if self.products is None else "triton"

    def plan(self, batch: int, weight: Tensor, model: Tensor) -> ProductPlan:
        """How a product with this weight is cut; `model` is any tensor of the model's dtype."""
        if self.products is None:
            return ProductPlan("library")
        return step_plans.product_plan(batch, weight.shape[1], weight.dtype, model.dtype)

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
        first: bool = False,
    ) -> None:
        """See reference.normed_product. `first`: the kernel before this one may be anyone's."""
        plan = self.plan(len(x), weight, norm)
        if self.products is None:
            reference.normed_product(x, norm, eps, weight, scale, out, add=add)
        elif plan.method == "library":
            y = self.products.rms_norm(x, norm, eps, weight.dtype) @ weight.mT
            if add:
                out += y
            else:
                out.copy_(y)
        else:
            self.products.normed_product(
                x, norm, eps, weight, scale, out, add=add, plan=plan, pdl=self.pdl and not first
            )

    def mixer_step(
        self,
        proj: Tensor,
        ring: Tensor,
        ssm: Tensor,
        position: Tensor,
        conv: Tensor,
        bias: Tensor,
        dt_bias: Tensor,
        A_log: Tensor,
        D: Tensor,
        out: Tensor,
        *,
        groups: int,
        chained: bool = True,
    ) -> None:
        """See reference.mixer_step. `chained`: the kernel before this one is one of ours."""
        tensors = (proj, ring, ssm, position, conv, bias, dt_bias, A_log, D, out)
        if self.products is None:
            reference.mixer_step(*tensors, groups=groups)
            return
        plan = step_plans.mixer_plan(len(proj), ssm.shape[2])
        self.products.mixer_step(*tensors, groups=groups, plan=plan, pdl=self.pdl and chained)

    def draws(self, rule: DrawRule) -> bool:
        """Whether `draw` chooses the token itself; else it is given one."""
        return self.drawing is not None and not rule.ordered

    def draw(
        self, buffers: DrawBuffers, table: Tensor, places: Tensor, rule: DrawRule, chosen: Tensor | None = None
    ) -> None:
        """The next token and input, see draw.advance; without `chosen` it also draws (see `draws`)."""
        if self.drawing is not None:
            self.drawing.draw(buffers, table, places, rule, chosen)
            return
        assert chosen is not None
        advance(buffers, table, places, chosen)
