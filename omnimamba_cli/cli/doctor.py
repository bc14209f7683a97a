"""`omnimamba doctor`: what is installed, what the machine has, which kernels run and why not the others."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import typer

from omnimamba_cli import __version__
from omnimamba_cli.cli import settings
from omnimamba_cli.cli.option_groups import takes_groups
from omnimamba_cli.cli.options import ReportOptions
from omnimamba_cli.cli.output import Output
from omnimamba_cli.errors import DeviceError

PACKAGES = (
    "torch torchvision timm numpy pillow safetensors huggingface-hub tokenizers accelerate typer rich "
    "triton mamba-ssm causal-conv1d resvg-py"
).split()
VARIABLES = "MODEL DEVICE DTYPE SEED KERNELS".split()

Facts = dict[str, Any]  # Any: a JSON object


@takes_groups
def command(ctx: typer.Context, report: ReportOptions) -> None:
    """Show versions, devices, kernels and installed models.

    \b
    omnimamba doctor
    omnimamba doctor --json
    OMNIMAMBA_KERNELS=torch omnimamba doctor

    Of the kernels it says which are in use and why not the others. Put its output into a bug report.
    """
    out = report.configure(ctx)
    found, refusal = kernels()
    facts: Facts = {
        "omnimamba": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": packages(),
        "devices": devices(),
        "kernels": found,
        "models": models(),
        "config": config(),
        "environment": {
            f"OMNIMAMBA_{v}": os.environ[f"OMNIMAMBA_{v}"] for v in VARIABLES if f"OMNIMAMBA_{v}" in os.environ
        },
    }
    if out.json:
        out.record(facts)
    else:
        show(out, facts)
    if refusal is not None:
        raise refusal  # every other command would


def config() -> str | None:
    """The file of defaults that commands read without --config, None where there is none."""
    found = settings.read(None)
    return None if found is None else str(found[0])


def packages() -> dict[str, str | None]:
    """Versions by distribution name, None for what is not installed."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def devices() -> list[Facts]:
    """Every device that a model can run on; the one that "auto" picks has the reason for it."""
    import torch

    from omnimamba_cli.engine import runtime

    chosen, reason = runtime.pick_device("auto")
    found: list[Facts] = []
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(i)
        found.append({"device": f"cuda:{i}", "name": properties.name, "bytes": properties.total_memory})
    if torch.backends.mps.is_available():
        found.append({"device": "mps", "name": "Apple GPU", "bytes": None})
    found.append({"device": "cpu", "name": platform.processor() or platform.machine(), "bytes": None})
    for fact in found:
        fact["auto"] = reason if fact["device"] == str(chosen) else None
    return found


def kernels() -> tuple[list[Facts], DeviceError | None]:
    """Every operation's backends on the device that "auto" picks; or why what the environment asks for cannot be."""
    from omnimamba_cli.engine import runtime
    from omnimamba_cli.ops import registry

    device, _ = runtime.pick_device("auto")
    try:
        choices = registry.report(device)
    except DeviceError as error:
        asked = os.environ.get(registry.ENVIRONMENT)
        return [{"op": "all", "backend": asked, "chosen": False, "reason": error.message}], error
    return [{"op": c.op, "backend": c.backend, "chosen": c.chosen, "reason": c.reason} for c in choices], None


def models() -> list[Facts]:
    """Models that -m finds by name."""
    from omnimamba_cli.engine import hub

    found = []
    for name, directory in hub.installed():
        size = sum(f.stat().st_size for f in directory.iterdir() if f.is_file())
        found.append({"name": name, "directory": str(directory), "bytes": size})
    return found


def show(out: Output, facts: Facts) -> None:
    """The facts for people."""
    out.line(f"omnimamba {facts['omnimamba']}, Python {facts['python']}, {facts['platform']}, {facts['cpus']} CPUs")
    out.line("\npackages")
    for name, found in facts["packages"].items():
        out.line(f"  {name:16} {found or 'not installed'}")
    out.line("\ndevices")
    for d in facts["devices"]:
        memory = f", {d['bytes'] / 1e9:.0f} GB" if d["bytes"] else ""
        out.line(f"  {d['device']:16} {d['name']}{memory}{'  <- auto: ' + d['auto'] if d['auto'] else ''}")
    out.line("\nkernels")
    for k in facts["kernels"]:
        out.line(f"  {k['op']:16} {k['backend']:12} {'in use' if k['chosen'] else 'not used'}: {k['reason']}")
    out.line("\nmodels")
    for m in facts["models"]:
        out.line(f"  {m['name']:16} {m['bytes'] / 1e6:.1f} MB  {m['directory']}")
    if not facts["models"]:
        out.line("  none installed")
    out.line(f"\ndefaults\n  {facts['config'] or 'no file: ' + str(settings.default_path())}")
    if facts["environment"]:
        out.line("\nenvironment")
    for name, value in facts["environment"].items():
        out.line(f"  {name}={value}")
