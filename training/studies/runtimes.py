"""Runtimes and precisions on a CPU side by side: the table of `training.runtimes`, and whether the goals are met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from training.studies.reports import batch_sizes, by_batch_size, per_machine, table, with_findings

Entry = Mapping[str, Any]
NAME = "runtimes"
"""Of the records."""


class Runner(NamedTuple):
    """What runs a batch."""

    runtime: str
    """OpenVINO or ONNX Runtime."""
    model: str
    """plain or FreqMerge."""
    precision: str


FIRST = Runner("OpenVINO", "plain", "fp32")
"""What the others are held against."""

SPEED_UPS: dict[str, dict[int, float]] = {"bf16": {1: 2.0, 8: 2.7, 32: 2.8}, "int8": {1: 2.5, 8: 3.5, 32: 3.8}}
"""By precision and batch size, how many times as fast as `FIRST` FreqMerge is to be on a CPU that has the precision."""
GAINS = {1: 1.40, 8: 1.48, 32: 1.52}
"""By batch size, how many times as fast as the plain model in the same precision FreqMerge is to be."""

FAITHFUL = 0.95
"""Least share of float32's first classes that a runner has to name if it is to count as one of the same model."""


def page(entries: Sequence[Entry]) -> str:
    """A table for each machine and what follows from it, or "not run"."""
    return per_machine(entries, _page)


def _page(entries: Sequence[Entry]) -> str:
    return with_findings(table_of(entries), findings(entries), _source(entries[0]))


def table_of(entries: Sequence[Entry]) -> str:
    """Images/s of every runner by batch size, with the ratio to the first."""
    rows = []
    for runner in dict.fromkeys(_runner(entry) for entry in entries):
        own = [entry for entry in entries if _runner(entry) == runner]
        rates = (f"{entry['images_per_s']:.1f} ({entry['speed_up']:.2f}×)" for entry in own)
        rows.append([*runner, *rates, f"{own[0]['agreement']:.0%}"])
    sizes = (f"images/s, batch {size}" for size in batch_sizes(entries))
    return table(["runtime", "model", "precision", *sizes, "same first class"], rows)


def findings(entries: Sequence[Entry]) -> list[str]:
    """The goals and what was reached, a line each."""
    by_runner = {(_runner(entry), entry["batch_size"]): entry for entry in entries}
    ours = {
        precision: {size: by_runner[Runner("OpenVINO", "FreqMerge", precision), size] for size in batch_sizes(entries)}
        for precision in dict.fromkeys(entry["precision"] for entry in entries if entry["runtime"] == "OpenVINO")
    }
    lines = [
        by_batch_size(f"FreqMerge in {precision}, to the plain model in fp32", ours[precision], "speed_up", goals)
        for precision, goals in SPEED_UPS.items()
        if precision in ours
    ]
    lines += [
        f"{precision}: not run, this processor does not have it." for precision in SPEED_UPS if precision not in ours
    ]
    lines += [
        by_batch_size(f"FreqMerge to the plain model, both in {precision}", own, "gain", GAINS)
        for precision, own in ours.items()
    ]
    if any(entry["runtime"] != "OpenVINO" for entry in entries):
        lines.append("FreqMerge, OpenVINO's fastest precision to ONNX Runtime's: " + _ahead(entries) + ".")
    left_out = dict.fromkeys(_runner(entry) for entry in entries if entry["agreement"] < FAITHFUL)
    lines += [
        f"{runner.runtime}, {runner.model}, {runner.precision}: not counted there, for it names too few of the first "
        "classes of fp32."
        for runner in left_out
        if runner.model == "FreqMerge"
    ]
    return lines


def _ahead(entries: Sequence[Entry]) -> str:
    cells = []
    for size in batch_sizes(entries):
        rates: dict[str, float] = {}
        for entry in entries:
            if entry["model"] == "FreqMerge" and entry["batch_size"] == size and entry["agreement"] >= FAITHFUL:
                rates[entry["runtime"]] = max(rates.get(entry["runtime"], 0.0), entry["speed_up"])
        cells.append(f"{rates['OpenVINO'] / rates['ONNX Runtime']:.2f} at batch {size}")
    return ", ".join(cells)


def _runner(entry: Entry) -> Runner:
    return Runner(entry["runtime"], entry["model"], entry["precision"])


def _source(first: Entry) -> str:
    machine = first["machine"]
    return (
        f"`{first['command']}`, checkpoint `{first['checkpoint']}` ({first['digest'][:12]}), on {machine['device']}, "
        f"{machine['threads']} threads; uint8 images in, host arrays out, medians of {first['repeats']} "
        "batches in turns, ratios as the median of the ratios of each turn. The last column: as the same model in "
        f"OpenVINO's fp32, of {first['compared']} training images."
    )
