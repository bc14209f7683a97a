"""What a snapshot of a run holds, and how a run takes it up again."""

import hashlib
import math
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from omnimamba_cli.data.files import DataFile, difference
from omnimamba_cli.errors import InputError, UsageError
from omnimamba_cli.train.sharding import cut_like, whole
from omnimamba_cli.train.snapshots import Snapshot

if TYPE_CHECKING:
    from omnimamba_cli.train.loop import Loop


def check_finite(step: int, **values: float) -> None:
    """Raises UsageError where a value, the same in every process, is no number: the weights are lost."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise UsageError(
                f"{name} is {value} at step {step}: training has diverged",
                hint="lower --lr, then --resume; where that diverges too, remove the newest snapshot before",
            )


def tensors_of(loop: "Loop") -> dict[str, Tensor]:
    """Trained weights, their average, the optimizer's moments, unreported sums and the job's counters."""
    tensors: dict[str, Tensor] = {f"weight/{n}": whole(p.detach()) for n, p in loop.parameters.items()}
    tensors.update({f"average/{n}": whole(t) for n, t in loop.average.values.items()})
    for name, parameter in loop.parameters.items():
        for key, value in loop.optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{key}/{name}"] = whole(value)
    tensors.update({f"window/{n}": t for n, t in loop.window.items()})
    tensors.update({f"counter/{n}": t for n, t in _counters(loop.job.module).items()})
    scaler = loop.accelerate.scaler
    if scaler is not None:
        tensors["scaler/scale"] = torch.tensor(scaler.get_scale())
        tensors["scaler/growth"] = torch.tensor(float(scaler.state_dict()["_growth_tracker"]))
    return tensors


def _counters(module: nn.Module) -> dict[str, Tensor]:
    """What a job counts in buffers that are no part of the result."""
    kept = module.state_dict()
    return {n: t for n, t in module.named_buffers() if n not in kept}


def fingerprint(module: nn.Module, trained: Container[str]) -> str:
    """Of everything that does not train: a resumed run must start from the same. Sums of bits, exact anywhere."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        if name not in trained and tensor.is_floating_point() and tensor.numel():
            bits = whole(tensor.detach()).float().contiguous().view(torch.int32)
            digest.update(f"{name} {int(bits.sum(dtype=torch.int64))}".encode())
    return digest.hexdigest()[:16]


def restore(loop: "Loop", found: Snapshot) -> None:
    """Put a snapshot's tensors in their places. Raises InputError for another run's snapshot."""
    _check(loop, found)
    tensors = found.tensors
    with torch.no_grad():
        for name, parameter in loop.parameters.items():
            parameter.copy_(cut_like(parameter, tensors[f"weight/{name}"]))
        for name, value in loop.average.values.items():
            value.copy_(cut_like(value, tensors[f"average/{name}"]))
        for name, value in _counters(loop.job.module).items():
            value.copy_(tensors[f"counter/{name}"])
    _restore_optimizer(loop, tensors)
    device = loop.accelerate.device
    loop.window = {n.removeprefix("window/"): t.to(device) for n, t in tensors.items() if n.startswith("window/")}


def _check_data(loop: "Loop", found: Snapshot) -> None:
    """Raises InputError for other data: the position in the run would pick other samples."""
    different = _difference(found, "data", loop.data)
    if different is not None:
        # a run that was killed has snapshots, but no model yet
        ended = any(loop.folder.glob("*.safetensors"))
        further = f", with --init {loop.folder} to go on from what this one learnt" if ended else ""
        raise InputError(different, hint=f"start another run on these data: another -o{further}")


def held_out_changed(loop: "Loop", found: Snapshot) -> list[str]:
    """What to say of held-out data that are others than before: training is the same, its evaluations are not."""
    if loop.held_out is None or not found.state.get("held_out"):
        return []
    different = _difference(found, "held_out", loop.held_out.files)
    if different is None:
        return []
    return [f"held out: {different}; losses before and after cannot be compared, the best starts anew"]


def _difference(found: Snapshot, key: str, now: Sequence[DataFile]) -> str | None:
    recorded = [DataFile(row["path"], row["bytes"], row["samples"]) for row in found.state[key]]
    return difference(recorded, now)


def _check(loop: "Loop", found: Snapshot) -> None:
    _check_data(loop, found)
    saved = {n.removeprefix("weight/"): t for n, t in found.tensors.items() if n.startswith("weight/")}
    if different := sorted(saved.keys() ^ loop.parameters.keys()):
        raise InputError(
            f"the snapshot of step {found.step} trains other tensors; first: {different[0]}",
            hint="resume with the options the run was started with, or train into another directory",
        )
    for name, tensor in saved.items():
        if tensor.shape != loop.parameters[name].shape:
            raise InputError(f"the snapshot of step {found.step} has another shape of {name}: another model's")
    if bool(loop.average.values) != any(n.startswith("average/") for n in found.tensors):
        raise InputError("the snapshot and this run differ in --ema", hint="resume with the same --ema")
    if found.state["frozen"] != fingerprint(loop.job.module, loop.parameters):
        raise InputError(
            "the weights that do not train differ from those the run was started with",
            hint="resume with the same --init, --vision and --seed",
        )


def _restore_optimizer(loop: "Loop", tensors: Mapping[str, Tensor]) -> None:
    names = {parameter: name for name, parameter in loop.parameters.items()}
    state: dict[int, dict[str, Tensor]] = {}
    ordered = [p for group in loop.optimizer.param_groups for p in group["params"]]
    for index, parameter in enumerate(ordered):
        wanted = {key: f"optimizer/{key}/{names[parameter]}" for key in ("step", "exp_avg", "exp_avg_sq")}
        found = {key: tensors[name] for key, name in wanted.items() if name in tensors}
        found = {key: t if key == "step" else cut_like(parameter, t) for key, t in found.items()}
        if found:
            state[index] = found
    loop.optimizer.load_state_dict({"state": state, "param_groups": loop.optimizer.state_dict()["param_groups"]})
    scaler = loop.accelerate.scaler
    if scaler is not None and "scaler/scale" in tensors:
        values: dict[str, Any] = dict(scaler.state_dict())  # Any: floats and ints
        values.update(scale=float(tensors["scaler/scale"]), _growth_tracker=int(tensors["scaler/growth"]))
        scaler.load_state_dict(values)
