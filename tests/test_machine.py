"""What the machine says of itself, and what a container allows of it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from hashlens import machine
from hashlens.codes.threads import thread_count

System = Callable[[dict[str, str]], None]


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[System]:
    """Puts files of Linux's /proc and /sys in the place of the real ones."""

    def put(files: dict[str, str]) -> None:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        monkeypatch.setattr(machine, "_SYSTEM", tmp_path)
        machine._core_quota.cache_clear()

    yield put
    machine._core_quota.cache_clear()


def test_cores_are_those_that_the_process_may_use() -> None:
    assert 1 <= machine.cores() <= (os.cpu_count() or 1)
    assert 1 <= thread_count() <= machine.cores()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux sets affinities")
def test_cores_follow_the_affinity() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert machine.cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "1000 100000\n"}, 1),
        (  # a group above allows less
            {
                "proc/self/cgroup": "0::/pod/box\n",
                "sys/fs/cgroup/pod/box/cpu.max": "600000 100000\n",
                "sys/fs/cgroup/pod/cpu.max": "200000 100000\n",
            },
            2,
        ),
        (  # version 1
            {
                "proc/self/cgroup": "3:memory:/x\n2:cpu,cpuacct:/box\n0::/\n",
                "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
    ],
)
def test_a_container_has_the_cores_of_its_quota(
    system: System, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    system(files)
    assert machine.cores() == cores


_MEMORY = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    4000 kB\n"}


@pytest.mark.parametrize(
    ("files", "available"),
    [
        ({}, None),
        (_MEMORY, 4000 << 10),
        (
            {
                **_MEMORY,
                "proc/self/cgroup": "0::/box\n",
                "sys/fs/cgroup/box/memory.max": "3000000\n",
                "sys/fs/cgroup/box/memory.current": "2500000\n",
                "sys/fs/cgroup/box/memory.stat": "anon 7\ninactive_file 1000\n",
                "sys/fs/cgroup/memory.max": "max\n",
            },
            501_000,
        ),
        (
            {
                **_MEMORY,
                "proc/self/cgroup": "4:memory:/box\n",
                "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "3000000\n",
                "sys/fs/cgroup/memory/box/memory.usage_in_bytes": "2500000\n",
                "sys/fs/cgroup/memory/box/memory.stat": "inactive_file 1\ntotal_inactive_file 2\n",
            },
            500_002,
        ),
    ],
)
def test_memory_that_can_still_be_taken(
    system: System, files: dict[str, str], available: int | None
) -> None:
    system(files)
    assert machine.available_memory() == available


_GROWING = """
import numpy as np
from hashlens.machine import peak_memory

peak = peak_memory()
block = np.ones(64 << 20, np.uint8)
print(peak, peak_memory())
"""


@pytest.mark.skipif(platform.system() != "Linux", reason="other systems do not say")
def test_memory_of_a_process() -> None:
    # a process of its own: here, memory that other tests had freed may be used again
    answer = subprocess.run(
        [sys.executable, "-c", _GROWING], capture_output=True, text=True, check=True
    )
    peak, later_peak = map(int, answer.stdout.split())
    assert later_peak >= peak > 0
    free = machine.available_memory()
    assert free is not None
    assert free > 0


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (
            {"proc/cpuinfo": "processor : 0\nmodel name\t: Fast Chip 9\nmodel name: b\n"},
            "Fast Chip 9",
        ),
        (
            {"proc/cpuinfo": "cpu family : 25\nmodel : 17\nmodel name : Fast Chip 9\n"},
            "Fast Chip 9 (family 25 model 17)",
        ),
        ({}, platform.processor() or platform.machine()),
        ({"proc/cpuinfo": "cpu family : 6\n"}, platform.processor() or platform.machine()),
    ],
)
def test_the_processor_has_the_name_that_the_machine_gives(
    system: System, files: dict[str, str], name: str
) -> None:
    system(files)
    assert machine.processor_name() == name
    assert machine.hardware().startswith(f"{machine.cores()} cores of {name}, ")


def test_the_gpu_is_the_first_that_the_driver_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.gpu_name() is None
    assert machine.hardware().endswith(", no GPU")
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU One'\necho 'GPU Two'\n")
    program.chmod(0o755)
    assert machine.gpu_name() == "GPU One"
    program.write_text("#!/bin/sh\nexit 9\n")
    assert machine.gpu_name() is None


def test_versions_are_of_what_is_installed() -> None:
    found = machine.versions("numpy", "no-such-package")
    assert found == {"python": platform.python_version(), "numpy": np.__version__}


_RESIDENT = """
import sys
import numpy as np
from hashlens.machine import keep_freed_memory

told = keep_freed_memory() if sys.argv[1] == "keep" else False
block = np.ones(200 << 20, dtype=np.uint8)
del block
resident = int(open("/proc/self/statm").read().split()[1]) * 4096
print(told, resident >> 20)
"""

needs_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="another C library has another allocator"
)


def _run(how: str, **environment: str) -> tuple[bool, int]:
    """Whether the allocator was told, and MiB resident after 200 MiB were freed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    answer = subprocess.run(
        [sys.executable, "-c", _RESIDENT, how],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    told, resident = answer.stdout.split()
    return told == "True", int(resident)


@needs_glibc
def test_freed_memory_is_kept() -> None:
    told, kept = _run("keep")
    _, given_back = _run("leave")
    assert told
    assert kept - given_back > 150


@needs_glibc
def test_the_environment_wins() -> None:
    told, resident = _run("keep", MALLOC_TRIM_THRESHOLD_="131072")
    assert not told
    assert resident < 200
