"""Results as JSON lines under docs/results/, each with the recipe of its number."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Hashable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from model import files, processor, provenance

RESULTS = Path("docs/results")
PACKAGES = ("fastapi", "numpy", "pillow", "ray", "starlette", "torch", "uvicorn", "uvloop")


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {"device": processor.cpu_name(), "cores": os.cpu_count(), "system": platform.system(), **_versions()}


def write(name: str, command: str, results: Sequence[dict[str, Any]], folder: Path = RESULTS) -> Path:
    """Replaces `folder/name.jsonl` by these results, each line with command, machine, commit and time."""
    return _put(name, _with_recipe(command, results), folder)


def merge(
    name: str,
    command: str,
    results: Sequence[dict[str, Any]],
    key: Callable[[dict[str, Any]], Hashable],
    folder: Path = RESULTS,
) -> Path:
    """As `write`, but results with another key stay as they are."""
    kept = {key(one): one for one in read(name, folder)}
    kept |= {key(one): one for one in _with_recipe(command, results)}
    return _put(name, list(kept.values()), folder)


def read(name: str, folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The results in `folder/name.jsonl`; none if there is no such file."""
    path = folder / f"{name}.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _with_recipe(command: str, results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    recipe = {
        "command": command,
        "machine": machine(),
        "commit": provenance.commit(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return [{**result, **recipe} for result in results]


def _put(name: str, results: Sequence[dict[str, Any]], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.jsonl"
    files.write_text(path, "".join(json.dumps(result) + "\n" for result in results))
    return path


def package_versions(python: Path, packages: Sequence[str]) -> dict[str, str]:
    """The versions that another Python has; raises `CalledProcessError` if one is missing there."""
    code = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    told = subprocess.run([python, "-c", code, *packages], capture_output=True, text=True, check=True, timeout=60)
    return dict(zip(packages, told.stdout.split(), strict=True))


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
