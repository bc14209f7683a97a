"""Opens the model a command works with, and says which one and where. The one way from the CLI to a Session."""

import secrets
from typing import TYPE_CHECKING

from omnimamba_cli.cli.output import Output

if TYPE_CHECKING:
    from omnimamba_cli.engine.session import Session
    from omnimamba_cli.model.quantized import Quantization

DEFAULT = "nano"


def open_session(
    out: Output, model: str | None, device: str, dtype: str, quantize: "Quantization | None" = None
) -> "Session":
    """A session on the named model, or on the bundled one, which is then said on stderr."""
    from omnimamba_cli.engine.session import load

    if not model:
        out.note(f"using {DEFAULT}, the small model that comes with this program (-m chooses another)")
    session = load(model or DEFAULT, device=device, dtype=dtype, quantize=quantize)
    if out.verbose:
        _describe(out, session)
    return session


def _describe(out: Output, session: "Session") -> None:
    from omnimamba_cli.ops import registry

    out.detail(f"model   {session.config.name}  {session.directory}")
    out.detail(f"device  {session.device}  {session.device_reason}")
    out.detail(f"dtype   {str(session.dtype).removeprefix('torch.')}  {session.dtype_reason}")
    if session.quantization:
        out.detail(f"weights {session.quantization} while decoding")
    for choice in registry.report(session.device):
        if choice.chosen:
            out.detail(f"kernel  {choice.op}: {choice.backend}  {choice.reason}")


def new_seed() -> int:
    """A seed for a run that was given none."""
    return secrets.randbits(31)
