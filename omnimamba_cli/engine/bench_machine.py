"""What a machine can do at best, measured at the start of a benchmark, and how much memory is in use."""

import contextlib
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

from omnimamba_cli import __version__

PRODUCT_SECONDS = 0.6
MEMORY, GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")  # of Linux
PACKAGES = ("torch", "triton", "mamba-ssm", "causal-conv1d")


@dataclass(frozen=True)
class Machine:
    """A device and its measured ceilings."""

    device: torch.device
    name: str
    dtype: torch.dtype  # of the matrix product
    read_bytes_per_s: float  # the fastest of a sum, a product sum and a copy (its reads and writes)
    flops_per_s: float  # of a large matrix product
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Memory:
    """Peak bytes since a reset; None where a device does not tell.

    allocated: in tensors; device: in use on the whole card (other processes too); rss: of this process.
    """

    allocated: int | None
    device: int | None
    rss: int | None

    @property
    def main(self) -> int | None:
        """The number to compare: tensors on a GPU, the process on a CPU."""
        return self.rss if self.allocated is None else self.allocated


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Wall time of some work, the device's part included."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


@torch.inference_mode()
def measure_machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """Read rate and matrix product of a device; a second on a GPU, two on a small CPU."""
    # on a CPU 16-bit weights are multiplied in float32
    rate, product = _read_rate(device), _product_rate(device, torch.float32 if device.type == "cpu" else dtype)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return Machine(device, device_name(device), dtype, rate, product, versions())


def _read_rate(device: torch.device) -> float:
    """Bytes a second: the best of three ways to pass over 2 GiB, or 256 MiB on a CPU, past every cache."""
    values = torch.ones(1 << (29 if device.type == "cuda" else 26), device=device)
    other = torch.empty_like(values)
    ways: list[tuple[Callable[[], object], int]] = [(lambda: other.copy_(values), 2), (values.sum, 1)]
    if device.type == "cpu":  # where a sum is bound by its additions
        ways.append((lambda: torch.dot(values, values), 1))
    rates = []
    for work, passes in ways:
        work()
        rates.append(passes * values.nbytes / min(seconds_of(work, device) for _ in range(5)))
    return max(rates)


def _product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large square matrix product."""
    side = 8192 if device.type == "cuda" else 1024
    a = torch.ones(side, side, device=device, dtype=dtype)
    torch.mm(a, a)
    tries: list[float] = []
    # others on the machine can only make it slower: a few lucky moments among many
    while len(tries) < 3 or (len(tries) < 20 and sum(tries) < PRODUCT_SECONDS):
        tries.append(seconds_of(lambda: torch.mm(a, a), device))
    return float(2 * side**3 / min(tries))


def device_name(device: torch.device) -> str:
    """What the hardware calls itself."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    if device.type == "mps":
        return "Apple GPU"
    threads = torch.get_num_threads()
    return f"{_cpu_name()}, {threads} {'thread' if threads == 1 else 'threads'}"


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of everything that decides the speed, by name."""
    found = {"omnimamba": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if torch.version.cuda:
        found["cuda"] = str(torch.version.cuda)
    return found


class MemoryMeter:
    """Peaks since `reset`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def reset(self) -> None:
        """Forget earlier peaks."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self.device.type == "cpu":
            _reset_peak_rss()

    def read(self) -> Memory:
        """The peaks."""
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.device)
            return Memory(torch.cuda.max_memory_allocated(self.device), total - free, _status_bytes("VmRSS"))
        if self.device.type == "mps":
            return Memory(torch.mps.current_allocated_memory(), torch.mps.driver_allocated_memory(), None)
        return Memory(None, None, _status_bytes("VmHWM"))


def _reset_peak_rss() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # see proc(5): resets VmHWM


def _status_bytes(key: str) -> int | None:
    """A line of /proc/self/status; None where there is no such file."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def free_bytes(device: torch.device) -> int | None:
    """Memory still to be had on a device; None where it is not told."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min((b for b in (_available(), _left_to_group()) if b is not None), default=None)


def _available() -> int | None:
    """What the kernel has left, with what it gives back when asked."""
    told = _numbers(MEMORY).get("MemAvailable:")  # in kB
    if told is not None:
        return told * 1024
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _left_to_group() -> int | None:
    """What a container may still take, whose limit the machine's memory says nothing of; None without a limit."""
    try:
        limit, used = (int((GROUP / f"memory.{name}").read_text(encoding="ascii")) for name in ("max", "current"))
    except (OSError, ValueError):  # "max" is no limit
        return None
    return max(0, limit - used + _numbers(GROUP / "memory.stat").get("inactive_file", 0))


def _numbers(path: Path) -> dict[str, int]:
    """The second word of each line by the first; nothing where there is no such file."""
    try:
        lines = [line.split() for line in path.read_text(encoding="ascii", errors="replace").splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


def fill_random(tensor: Tensor, scale: float) -> None:
    """Uniform numbers in -scale to scale, one block over and over: gigabytes in a second, on a CPU too."""
    flat = tensor.detach().view(-1)
    block = torch.empty(min(flat.numel(), (1 << 20) + 7), device=tensor.device).uniform_(-scale, scale)
    block = block.to(tensor.dtype)
    whole = flat.numel() // block.numel() * block.numel()
    flat[:whole].view(-1, block.numel()).copy_(block.expand(whole // block.numel(), -1))
    flat[whole:].copy_(block[: flat.numel() - whole])


def median_and_spread(values: tuple[float, ...]) -> tuple[float, float]:
    """The median, and the distance between the quartiles (0 for one value)."""
    if len(values) < 2:
        return values[0], 0.0
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, high - low
