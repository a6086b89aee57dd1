"""How much memory is left."""

from __future__ import annotations

from pathlib import Path

MEMINFO = Path("/proc/meminfo")
GROUP = Path("/sys/fs/cgroup")
"""Limits of the container, as control groups of version 2 tell them."""


def available(meminfo: Path = MEMINFO, group: Path = GROUP) -> int | None:
    """Bytes that may still be taken, by the machine's memory and the container's limit; None where nobody tells."""
    rooms = [room for room in (_of_machine(meminfo), _of_container(group)) if room is not None]
    return min(rooms) if rooms else None


def _of_machine(meminfo: Path) -> int | None:
    kilobytes = _field(meminfo, "MemAvailable:")
    return None if kilobytes is None else 1024 * kilobytes


def _of_container(group: Path) -> int | None:
    limit, used = _number(group / "memory.max"), _number(group / "memory.current")
    if limit is None or used is None:
        return None
    # files that were read lie in memory until it is wanted
    return limit - used + (_field(group / "memory.stat", "inactive_file") or 0)


def _number(path: Path) -> int | None:
    """The file's number; None if it is not there or says 'max'."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _field(path: Path, name: str) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.split()[:1] == [name]), None)
