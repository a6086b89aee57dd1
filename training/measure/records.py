"""Results as JSON lines, each with the recipe of its number: the user's own, or the published ones in docs/results/."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from model import files, processor, provenance
from model.checkpoint import versions
from model.config import Frozen
from training.data.dataset import Source
from training.errors import TrainingError

RESULTS = Path("docs/results")
"""The published records, from which `training.tables` makes the tables."""
RECORD = f"publish: write the records to {RESULTS}, from which the tables are made, not to output_dir"


class RecordConfig(Frozen):
    """Where the records go."""

    output_dir: Path = Field(Path(), description="where results/, with the records, is written")
    record: bool = Field(False, description=RECORD)

    @property
    def results(self) -> Path:
        """Folder of the records."""
        return folder(self.output_dir, self.record)


def folder(output_dir: Path, record: bool, source: Source | None = None) -> Path:
    """Where the records go: `output_dir/results`, or `RESULTS` to publish them.

    Raises `TrainingError` for publishing figures of pictures that are not CIFAR-100's.
    """
    if record and source is not None and source.own:
        raise TrainingError(
            f"record: expected figures of CIFAR-100, which {RESULTS} holds, found {source.name}; leave out --record"
        )
    return RESULTS if record else output_dir / "results"


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers were measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor.cpu_name()
    return {"device": name, "threads": torch.get_num_threads(), "system": platform.system(), **versions()}


def write(name: str, command: str, results: Sequence[dict[str, Any]], device: torch.device, folder: Path) -> Path:
    """Replaces `folder/name.jsonl` by these results, each line with command, machine, commit and time.

    A trial on fewer test images does not replace a result on more: it goes to `folder/trials/`, which no table reads.
    """
    recipe = _recipe(command, device)
    trial = _images(results) < _images(read(name, folder) if (folder / f"{name}.jsonl").is_file() else [])
    return _write(name, [{**result, **recipe} for result in results], folder / "trials" if trial else folder)


def write_for_machine(
    name: str, command: str, results: Sequence[dict[str, Any]], device: torch.device, folder: Path
) -> Path:
    """Replaces this machine's results in `folder/name.jsonl`, and keeps other machines' of the same checkpoint."""
    recipe = _recipe(command, device)
    digests = {result["digest"] for result in results}
    older = read(name, folder) if (folder / f"{name}.jsonl").is_file() else []
    others = [
        record
        for record in older
        if record["digest"] in digests and record["machine"]["device"] != recipe["machine"]["device"]
    ]
    return _write(name, [*others, *({**result, **recipe} for result in results)], folder)


def grouped(
    entries: Sequence[Mapping[str, Any]], key: Callable[[Mapping[str, Any]], str]
) -> list[list[Mapping[str, Any]]]:
    """The results that share a key, in the order of their first ones."""
    return [[entry for entry in entries if key(entry) == own] for own in dict.fromkeys(map(key, entries))]


def by_machine(entries: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The results of each machine."""
    return grouped(entries, lambda entry: str(entry["machine"]["device"]))


def by_checkpoint(entries: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The results of each checkpoint."""
    return grouped(entries, lambda entry: str(entry["digest"]))


def add(
    name: str,
    command: str,
    result: dict[str, Any],
    device: torch.device,
    folder: Path,
    *,
    same: Sequence[str],
) -> Path:
    """Adds a result to `folder/name.jsonl` as `write` does, in place of one that agrees in the fields `same`."""
    entry = {**result, **_recipe(command, device)}
    as_read = json.loads(json.dumps(entry))  # tuples become lists
    older = read(name, folder) if (folder / f"{name}.jsonl").is_file() else []
    others = [record for record in older if any(record.get(key) != as_read.get(key) for key in same)]
    return _write(name, [*others, entry], folder)


def read(name: str, folder: Path) -> list[dict[str, Any]]:
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
