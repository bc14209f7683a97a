"""Opens the model that a command works with, and says which. The only way from the CLI to a Session."""

import secrets
from typing import TYPE_CHECKING

from omnimamba_cli.cli.options import DecodingOptions, ModelOptions
from omnimamba_cli.cli.output import Output

if TYPE_CHECKING:
    import torch

    from omnimamba_cli.config import Task
    from omnimamba_cli.engine.session import Session


def open_session(out: Output, where: ModelOptions, *, task: "Task | None" = None) -> "Session":
    """A session on the named model; without a name on the best installed one for the task, named on stderr."""
    from omnimamba_cli.engine import hub
    from omnimamba_cli.engine.session import load

    model = where.model
    if not model:
        model = hub.default_model(task)
        what = ", the small model that comes with this program" if model == hub.BUNDLED else ""
        out.note(f"using {model}{what} (-m chooses another)")
    quantize = where.quantize if isinstance(where, DecodingOptions) else None
    session = load(model, device=where.device, dtype=where.dtype, quantize=quantize)
    if out.verbose:
        out.detail(f"model   {session.config.name}  {session.directory}")
        device, dtype = (session.device, session.device_reason), (session.dtype, session.dtype_reason)
        describe_choices(out, device, dtype, session.quantization)
    return session


def describe_choices(
    out: Output, device: "tuple[torch.device, str]", dtype: "tuple[torch.dtype, str]", quantization: str | None
) -> None:
    """Says for -v where and in what it runs, by which kernels, each with its reason."""
    from omnimamba_cli.ops import registry

    out.detail(f"device  {device[0]}  {device[1]}")
    out.detail(f"dtype   {str(dtype[0]).removeprefix('torch.')}  {dtype[1]}")
    if quantization:
        out.detail(f"weights {quantization} while decoding")
    for choice in registry.report(device[0]):
        if choice.chosen:
            out.detail(f"kernel  {choice.op}: {choice.backend}  {choice.reason}")


def new_seed() -> int:
    """A random seed, for a run that was given none."""
    return secrets.randbits(31)


def be_deterministic(out: Output) -> None:
    """From now on, the same input gives the same bits on the same machine."""
    from omnimamba_cli.engine.runtime import make_deterministic

    make_deterministic()
    out.detail("deterministic: batches are filled before they run, and on a GPU only kernels that repeat are used")
