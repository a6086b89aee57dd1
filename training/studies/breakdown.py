"""Where the time of one batch goes: the table of `training.breakdown`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from training.measure.graph_parts import MERGING, PARTS
from training.studies.reports import per_machine, table

Entry = Mapping[str, Any]
NAME = "breakdown"
"""Of the records."""


def page(entries: Sequence[Entry]) -> str:
    """A table for each machine and what it was measured with, or "not run"."""
    return per_machine(entries, _page)


def _page(entries: Sequence[Entry]) -> str:
    shares = ", ".join(f"{100 * _merging(entry):.1f} % in {_column(entry)}" for entry in entries)
    return f"{table_of(entries)}\nMerging ({', '.join(MERGING)}) takes {shares}.\n\n{_source(entries[0])}\n"


def table_of(entries: Sequence[Entry]) -> str:
    """Milliseconds and share of each part, a column per precision and batch size."""
    rows = [
        [part, *(f"{entry['parts_ms'][part]:.2f} ({100 * _share(entry, [part]):.1f} %)" for entry in entries)]
        for part in PARTS
        if any(entry["parts_ms"][part] >= 0.001 for entry in entries)
    ]
    rows.append(["all nodes", *(f"{sum(entry['parts_ms'].values()):.2f}" for entry in entries)])
    rows.append(["the batch, by the clock", *(f"{entry['batch_ms']:.2f}" for entry in entries)])
    return table(["part", *(f"{_column(entry)}, ms" for entry in entries)], rows)


def _merging(entry: Entry) -> float:
    return _share(entry, MERGING)


def _share(entry: Entry, parts: Sequence[str]) -> float:
    times = entry["parts_ms"]
    return float(sum(times[part] for part in parts) / sum(times.values()))


def _column(entry: Entry) -> str:
    return f"{entry['precision']}, batch {entry['batch_size']}"


def _source(first: Entry) -> str:
    machine = first["machine"]
    return (
        f"`{first['command']}`, checkpoint `{first['checkpoint']}` ({first['digest'][:12]}) at keep rate "
        f"{first['keep_rate']:g}, on {machine['device']}, {machine['threads']} threads; means of "
        f"{first['repeats']} batches, the parts by OpenVINO's own counters."
    )
