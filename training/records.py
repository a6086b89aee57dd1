"""Results as JSON lines under docs/results/, each with the recipe of its number."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from model import files
from model.checkpoint import versions
from training.errors import TrainingError

RESULTS = Path("docs/results")


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers were measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {"device": name, "threads": torch.get_num_threads(), "system": platform.system(), **versions()}


def write(
    name: str, command: str, results: Sequence[dict[str, Any]], device: torch.device, folder: Path = RESULTS
) -> Path:
    """Replaces `folder/name.jsonl` by these results, each line with command, machine, commit and time."""
    recipe = {
        "command": command,
        "machine": machine(device),
        "commit": _commit(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    path = folder / f"{name}.jsonl"
    files.write_text(path, "".join(json.dumps({**result, **recipe}) + "\n" for result in results))
    return path


def read(name: str, folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The results in `folder/name.jsonl`; raises `TrainingError` if there are none."""
    path = folder / f"{name}.jsonl"
    if not path.is_file():
        raise TrainingError(f"expected results in {path}, found no file; run the command that measures them")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor() or platform.machine()


def _commit() -> str:
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()
