"""Models, engines and precisions on a GPU side by side: the table of `training.gpu`, and whether the goals are met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from training.studies.reports import batch_sizes, by_batch_size, per_machine, reached, table, with_findings

Entry = Mapping[str, Any]
NAME = "gpu"
"""Of the records."""
PLAIN, TOME, FREQMERGE = "plain", "ToMe, every block", "FreqMerge"


class Runner(NamedTuple):
    """What runs a batch."""

    model: str
    engine: str
    """eager or inductor."""
    precision: str


GAINS = {1: 1.0, 256: 1.5}
"""By batch size, how many times as fast as the plain model, compiled alike, FreqMerge is to be."""
RATE = 25_000
"""Images/s that compiled FreqMerge is to reach at the largest batch."""
SHARE = 0.9
"""Least share of the gain that the multiply-accumulates promise, at the largest batch."""


def page(entries: Sequence[Entry]) -> str:
    """A table for each GPU and what follows from it, or "not run"."""
    return per_machine(entries, _page)


def _page(entries: Sequence[Entry]) -> str:
    return with_findings(table_of(entries), findings(entries), _source(entries[0]))


def table_of(entries: Sequence[Entry]) -> str:
    """Images/s of every runner by batch size, with the ratio to the plain model run alike."""
    rows = []
    for runner in dict.fromkeys(_runner(entry) for entry in entries):
        own = [entry for entry in entries if _runner(entry) == runner]
        rates = (f"{entry['images_per_s']:,.0f} ({entry['gain']:.2f}×)" for entry in own)
        rows.append([*runner, f"{own[0]['macs'] / 1e9:.2f}", *rates])
    sizes = (f"images/s, batch {size}" for size in batch_sizes(entries))
    return table(["model", "engine", "precision", "GMACs", *sizes], rows)


def findings(entries: Sequence[Entry]) -> list[str]:
    """The goals of the compiled model and what was reached, a line for each precision."""
    lines = []
    for precision in dict.fromkeys(entry["precision"] for entry in entries):
        own = {e["batch_size"]: e for e in entries if _runner(e) == Runner(FREQMERGE, "inductor", precision)}
        if not own:
            continue
        lines.append(by_batch_size(f"FreqMerge to the plain model, both compiled, in {precision}", own, "gain", GAINS))
        last = own[max(own)]
        share = last["gain"] / last["gain_by_macs"]
        lines.append(
            f"At batch {max(own)} in {precision}: {last['images_per_s']:,.0f} images/s (goal {RATE:,}: "
            f"{reached(last['images_per_s'] >= RATE)}); {share:.0%} of the {last['gain_by_macs']:.2f} that the "
            f"multiply-accumulates promise (goal {SHARE:.0%}: {reached(share >= SHARE)})."
        )
    return lines


def _runner(entry: Entry) -> Runner:
    return Runner(entry["model"], entry["engine"], entry["precision"])


def _source(first: Entry) -> str:
    machine = first["machine"]
    return (
        f"`{first['command']}`, checkpoint `{first['checkpoint']}` ({first['digest'][:12]}), on {machine['device']}, "
        f"torch {machine['torch']}; uint8 images in, host arrays out, medians of {first['repeats']} batches in turns; "
        "in brackets the median of the ratios to the plain model in the same engine and precision."
    )
