"""Linear layers of an inference copy in the order that a CPU multiplies fastest; see ops.half_linear."""

from typing import Self, TypeVar

from torch import Tensor, nn

from omnimamba_cli.config import Task
from omnimamba_cli.model.lora import MergedLinear
from omnimamba_cli.model.omnimamba import OmniMamba
from omnimamba_cli.ops import half_linear, registry

M = TypeVar("M", bound=nn.Module)


class PackedLinear(nn.Module):
    """A linear map without its weight: only the packed one is kept. Never changes, so copies share it."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, task: Task | None = None) -> None:
        super().__init__()
        self.task = task
        self.weights = weight.numel()
        self.packed = half_linear.pack(weight, bias)

    def forward(self, x: Tensor, task: Task | None = None) -> Tensor:
        """x (... i) to (... o); a map made for one task refuses every other."""
        if task != self.task:
            raise ValueError(f"this model is packed for {self.task!r}; it cannot run {task!r}")
        return half_linear.linear(x, self.packed)

    def __deepcopy__(self, memo: object) -> Self:
        return self


def pack_linears(module: M) -> M:
    """The same module with its linear layers packed, where its device and dtype gain by it; else as it was."""
    example = next(module.parameters(), None)
    if example is None or not registry.packs_linear(example.device, example.dtype):
        return module
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            # layer by layer, so that no second copy of the model is ever there
            if type(child) is nn.Linear:
                setattr(parent, name, PackedLinear(child.weight, child.bias))
            elif isinstance(child, MergedLinear):
                setattr(parent, name, PackedLinear(child.weight, task=child.task))
    return module


def pack_for_task(model: OmniMamba, task: Task) -> OmniMamba:
    """A model merged for a task with its linear layers and the task's head packed, where that gains; in place."""
    head = model.head(task)
    if registry.packs_linear(head.device, head.dtype):
        model.narrow_heads[task] = PackedLinear(head)
    return pack_linears(model)


def linear_weights(module: nn.Module) -> list[tuple[int, int]]:
    """(number, bytes) of the weights of every map and table in a module, packed ones too."""
    plain = [(p.numel(), p.nbytes) for p in module.parameters() if p.ndim > 1]
    packed = [(m.weights, 2 * m.weights) for m in module.modules() if isinstance(m, PackedLinear)]
    return plain + packed
