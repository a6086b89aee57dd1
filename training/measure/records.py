"""Results as JSON lines under docs/results/, each with the recipe of its number."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from model import files, provenance
from model.checkpoint import versions
from training.errors import TrainingError

RESULTS = Path("docs/results")
OWN = Path("results")
PLACE = f"folder of the result files; none takes {RESULTS}, or {OWN} for pictures of one's own"


def place(given: Path | None, own: bool) -> Path:
    """The folder of the result files: figures of one's own pictures do not mix with those of CIFAR-100."""
    return given or (OWN if own else RESULTS)


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers were measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else provenance.cpu_name()
    return {"device": name, "threads": torch.get_num_threads(), "system": platform.system(), **versions()}


def write(
    name: str, command: str, results: Sequence[dict[str, Any]], device: torch.device, folder: Path = RESULTS
) -> Path:
    """Replaces `folder/name.jsonl` by these results, each line with command, machine, commit and time.

    A trial on fewer test images does not replace a result on more: it goes to `folder/trials/`, which no table reads.
    """
    recipe = _recipe(command, device)
    trial = _images(results) < _images(read(name, folder) if (folder / f"{name}.jsonl").is_file() else [])
    return _write(name, [{**result, **recipe} for result in results], folder / "trials" if trial else folder)


def add(
    name: str,
    command: str,
    result: dict[str, Any],
    device: torch.device,
    folder: Path = RESULTS,
    *,
    same: Sequence[str],
) -> Path:
    """Adds a result to `folder/name.jsonl` as `write` does, in place of one that agrees in the fields `same`."""
    entry = {**result, **_recipe(command, device)}
    told = json.loads(json.dumps(entry))  # tuples become lists, as in what was read
    older = read(name, folder) if (folder / f"{name}.jsonl").is_file() else []
    others = [one for one in older if any(one.get(key) != told.get(key) for key in same)]
    return _write(name, [*others, entry], folder)


def read(name: str, folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The results in `folder/name.jsonl`; raises `TrainingError` if there are none."""
    path = folder / f"{name}.jsonl"
    if not path.is_file():
        raise TrainingError(f"expected results in {path}, found no file; run the command that measures them")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _recipe(command: str, device: torch.device) -> dict[str, Any]:
    return {
        "command": command,
        "machine": machine(device),
        "commit": provenance.commit(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _images(results: Sequence[dict[str, Any]]) -> int:
    """The fewest test images that one of the results is of; 0 where results are of none."""
    return min((result.get("images", 0) for result in results), default=0)


def _write(name: str, entries: Sequence[dict[str, Any]], folder: Path) -> Path:
    path = folder / f"{name}.jsonl"
    files.write_text(path, "".join(json.dumps(entry) + "\n" for entry in entries))
    return path
