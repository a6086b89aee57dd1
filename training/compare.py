"""`python -m training.compare`: checkpoints of several runs on the same test images, paired.

Which merging a model should be trained with is not said by one checkpoint under several configs (`training.ablation`):
here every checkpoint is scored as it was trained, and, where asked, all of them under the same configs too.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool
from pydantic import Field, field_validator

from model import files
from model.checkpoint import read_manifest
from model.engines.device import pick_device
from model.manifest import Manifest
from model.merging.strategies import STRATEGIES
from training import cli
from training.data import dataset
from training.measure import records
from training.measure.bench import Bench, BenchConfig
from training.measure.paired import compare, standard_error
from training.measure.scores import scores
from training.studies import trained
from training.studies.plan import PLAIN
from training.studies.trained import NAME, OWN

UNUSED = ("ckpt", "repeats", "warm_up")
"""Fields of a bench that are the command's own business, or of timing."""


class CompareConfig(BenchConfig):
    """Which checkpoints are compared, and how each is evaluated."""

    ckpts: tuple[Path, ...] = Field(
        min_length=2, description="checkpoints to compare; the others are tested against the first"
    )
    also: tuple[str, ...] = Field(
        (),
        description="further configs under which every checkpoint is scored: plain (nothing merges), or strategies on "
        "the schedule of the first checkpoint that merges",
    )

    @field_validator("also")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        known = (PLAIN, *STRATEGIES)
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"expected some of {', '.join(known)}, without {', '.join(unknown)}")
        return tuple(dict.fromkeys(names))


class Measured(NamedTuple):
    """One checkpoint under one merging config."""

    right: Bool[np.ndarray, "1 images"]
    entry: dict[str, Any]


def compare_checkpoints(config: CompareConfig, command: str) -> list[dict[str, Any]]:
    """Scores every checkpoint under every config, writes record and table, and returns the entries, own configs first.

    Raises `ConfigError` for checkpoints that cannot be compared, and what `training.evaluate.evaluate` raises.
    """
    results = records.folder(config.output_dir, config.record, dataset.source(config.data_dir))
    manifests = {path: read_manifest(path) for path in config.ckpts}
    trained.refuse_others(manifests)
    changes: dict[str, dict[str, Any]] = {OWN: {}, **trained.common(list(manifests.values()), config.also)}
    names = dict(zip(manifests, trained.labels(list(manifests.values())), strict=True))
    first = manifests[config.ckpts[0]]
    measured: dict[str, dict[str, Measured]] = {evaluated: {} for evaluated in changes}
    for path, manifest in manifests.items():  # one after the other: a bench holds gigabytes
        said = {"label": names[path], **trained.facts(first, manifest)}
        for evaluated, measurement in _measured(config.replace(ckpt=path), manifest, changes, said).items():
            measured[evaluated][manifest.digest] = measurement
    entries = [
        {**measurement.entry, "against": _against(digest, measurement, each, measured[OWN], first.digest)}
        for each in measured.values()
        for digest, measurement in each.items()
    ]
    path = records.write(NAME, command, entries, pick_device(config.device), results)
    table = trained.page(entries)
    files.write_text(config.output_dir / "logs" / f"{NAME}.md", f"# Checkpoints compared\n\n`{command}`\n\n{table}")
    print(f"{table}\nrecorded: {path}")
    return entries


def _measured(
    config: CompareConfig, manifest: Manifest, changes: dict[str, dict[str, Any]], said: dict[str, Any]
) -> dict[str, Measured]:
    """The checkpoint of `config` under each config, equal ones measured once."""
    bench, seen, measurements = Bench(config), dict[str, Measured](), dict[str, Measured]()
    for evaluated, change in changes.items():
        model_config = trained.config_of(manifest, change)
        key = model_config.to_json()
        if key not in seen:
            labels, logits = bench.images.labels, bench.logits(model_config)
            accuracy = scores(logits, labels)
            print(f"{said['label']}, {trained.evaluated_with(evaluated)}: top-1 {accuracy.top1:.2%}", file=sys.stderr)
            entry = {
                **bench.origin(),
                **said,
                "config": model_config.model_dump(mode="json"),
                **accuracy._asdict(),
                "standard_error": standard_error(accuracy.top1, len(labels)),
                **bench.cost(model_config)._asdict(),
            }
            seen[key] = Measured((logits.argmax(dim=1) == labels).numpy()[None], entry)
        row = {"study": NAME, "row": f"{evaluated}/{manifest.digest[:12]}", "evaluated": evaluated}
        measurements[evaluated] = seen[key]._replace(entry={**row, **seen[key].entry})
    return measurements


def _against(
    digest: str, measurement: Measured, alike: dict[str, Measured], own: dict[str, Measured], first: str
) -> dict[str, Any]:
    """The paired comparisons of one row: with the first checkpoint evaluated alike, and with itself as trained."""
    others = {}
    if digest != first:
        others["first"] = alike[first]
    if measurement.entry["config"] != own[digest].entry["config"]:
        others[OWN] = own[digest]
    return {name: compare(measurement.right, other.right)._asdict() for name, other in others.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the comparison."""
    parsed = cli.parser(
        "python -m training.compare",
        "Compare checkpoints of several runs on the same test images, paired.",
        CompareConfig,
        without=UNUSED,
    ).parse_args(arguments)
    compare_checkpoints(CompareConfig(**cli.given(CompareConfig, parsed)), cli.command("training.compare", arguments))


if __name__ == "__main__":
    cli.run(main)
