"""What this machine has, and how much of it this process may use."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]

_SYSTEM = Path("/")


def cores() -> int:
    """Processor cores that this process may use: its affinity, and its container's quota."""
    usable = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, min(usable, _core_quota()))


@cache
def _core_quota() -> int:
    """Whole cores that the process's control groups allow."""
    allowed = [float(sys.maxsize)]
    for group in _control_groups("cpu"):
        pair = _numbers(group / "cpu.max") or [
            *_numbers(group / "cpu.cfs_quota_us"),
            *_numbers(group / "cpu.cfs_period_us"),
        ]
        if len(pair) == 2 and min(pair) > 0:
            allowed.append(pair[0] / pair[1])
    return math.ceil(min(allowed))


def available_memory() -> int | None:
    """Bytes of memory that this process can still take; None where the system does not say."""
    try:
        lines = (_SYSTEM / "proc/meminfo").read_text(encoding="ascii").splitlines()
        free = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
    except OSError:
        return None
    for group in _control_groups("memory"):
        for limit, used in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            numbers = _numbers(group / limit) + _numbers(group / used)
            if len(numbers) == 2:
                free.append(max(0, numbers[0] - numbers[1] + _reclaimable(group)))
    return min(free, default=None)


def _reclaimable(group: Path) -> int:
    """Bytes of a group's cached files, which make room when memory is short."""
    try:
        lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    values = dict(line.split() for line in lines)
    return int(values.get("total_inactive_file", values.get("inactive_file", 0)))


def _control_groups(controller: str) -> Iterator[Path]:
    """Folders of the process's control groups on Linux, from its own to the root."""
    try:
        lines = (_SYSTEM / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, names, inside = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        root = _SYSTEM / "sys/fs/cgroup" / (controller if names else "")
        own = root / inside.lstrip("/")
        while True:
            yield own
            if own == root:
                break
            own = own.parent


def _numbers(path: Path) -> list[int]:
    """Whole numbers in a small file; none where it is missing or says ``max``."""
    try:
        words = path.read_text(encoding="ascii").split()
    except OSError:
        return []
    return [] if "max" in words else [int(word) for word in words]


def peak_memory() -> int:
    """Most bytes of memory that this process has had at a time; 0 where the system has no count."""
    if resource is None:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


# From glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
_LARGEST = 1 << 30
_PAD = 1 << 26


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to keep freed blocks of up to 1 GiB instead of unmapping them.

    By default every tensor above 32 MiB, and at first above 128 KiB, is mapped for itself and
    unmapped when freed, so each layer of a network touches pages that the kernel must first
    clear. On a processor that can cost more than the arithmetic. The price is that the process
    stays at its highest memory use.

    Does nothing with another C library, or where a ``MALLOC_...`` variable of the environment
    already says what to do.
    """
    if not sys.platform.startswith("linux") or any(
        name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ
    ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl has none
        return False
    # Older versions refuse a threshold above 32 MiB: then nothing at all is mapped.
    large = mallopt(_MMAP_THRESHOLD, _LARGEST) or mallopt(_MMAP_MAX, 0)
    return bool(large and mallopt(_TRIM_THRESHOLD, -1) and mallopt(_TOP_PAD, _PAD))


def hardware() -> str:
    """The machine in words, for reports: usable cores, the processor's name, the GPU's."""
    return f"{cores()} cores of {processor_name()}, {gpu_name() or 'no GPU'}"


def processor_name() -> str:
    """The processor's name as the machine gives it, and its family and model, which tell more."""
    name = next(_processor_lines("model name"), "")
    if name and (family := next(_processor_lines("cpu family"), "")):
        name += f" (family {family} model {next(_processor_lines('model'), '?')})"
    if not name and sys.platform == "darwin":
        name = _answer("sysctl", "-n", "machdep.cpu.brand_string")
    return name or platform.processor() or platform.machine()


def gpu_name() -> str | None:
    """Name of the first NVIDIA GPU; None where there is none."""
    return _answer("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or None


def has_cuda() -> bool:
    """Whether torch finds a CUDA device."""
    import torch

    return bool(torch.cuda.is_available())


def multiplies_bfloat16() -> bool:
    """Whether the device that torch would use multiplies bfloat16 itself."""
    import torch

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    flags = next(_processor_lines("flags"), "").split()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _processor_lines(name: str) -> Iterator[str]:
    """Values of this name in Linux's description of the processors."""
    try:
        text = (_SYSTEM / "proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            yield value.strip()


def _answer(*command: str) -> str:
    """First line that a command prints; nothing where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return next(iter(done.stdout.splitlines()), "").strip()


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
