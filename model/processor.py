"""The processor that this process runs on: its name, what it computes in, how much of it may be used."""

from __future__ import annotations

import os
import platform
from pathlib import Path

CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
"""Where the kernel says how much processor time this container may use (cgroup v2)."""


def cpu_name() -> str:
    """The processor and its number of cores, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor() or platform.machine()


FEATURES = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "bf16",
    "i8mm",
)
"""Instructions, by Linux's names, that decide how fast a processor computes in which numbers."""

INT8_FEATURES = ("avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")


def cpu_features() -> tuple[str, ...]:
    """Those of `FEATURES` that the processor has, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    flags = {
        flag for line in lines if line.startswith(("flags", "Features")) for flag in line.partition(":")[2].split()
    }
    return tuple(feature for feature in FEATURES if feature in flags)


def fast_int8() -> bool:
    """Whether the processor has instructions for products of 8-bit numbers, without which int8 is no faster."""
    return any(feature in INT8_FEATURES for feature in cpu_features())


def usable_cpus(limit: Path = CPU_LIMIT) -> int:
    """Processors that this process may use, at least 1: those it is bound to, or fewer where a container limits it."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = limit.read_text(encoding="ascii").split()
        return max(1, min(bound, int(quota) // int(period)))
    except (OSError, ValueError):  # no such cgroup, or the quota "max"
        return bound
