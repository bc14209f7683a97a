"""Weights that accelerate's FSDP has cut into shards: gathering them, cutting them again, the part of this process.

Tensors that are not sharded are returned as they are, at no cost.
"""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(module: nn.Module) -> bool:
    """Whether every process holds only a part of each weight."""
    return any(isinstance(p, DTensor) for p in module.parameters())


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor, gathered; every process must call this for the same tensors in the same order."""
    if not isinstance(tensor, DTensor):
        return tensor
    result: Tensor = tensor.full_tensor()
    return result


def local(tensor: Tensor) -> Tensor:
    """The part that this process holds, sharing its memory."""
    if not isinstance(tensor, DTensor):
        return tensor
    result: Tensor = tensor.to_local()
    return result


def cut_like(like: Tensor, tensor: Tensor) -> Tensor:
    """A whole tensor, the same in every process, cut as `like` is."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


@torch.no_grad()
def make_whole(module: nn.Module) -> None:
    """Gather all weights in every process as plain parameters, to save them. The module can no longer be trained."""
    for part in module.modules():
        if hasattr(part, "reshard"):
            part.reshard()  # else a hook of state_dict would put the shards back
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if isinstance(parameter, DTensor):
                part._parameters[name] = nn.Parameter(whole(parameter), requires_grad=parameter.requires_grad)
