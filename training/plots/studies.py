"""What a study found, drawn from its records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model import files


def study(entries: Sequence[dict[str, Any]], path: Path) -> None:
    """Top-1 of every row against its cost where budgets are compared, else one dot per row."""
    from matplotlib.figure import Figure  # slow to import, and only needed here

    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    measured = [entry for entry in entries if "top1" in entry]
    if any(entry["budget"] is not None for entry in measured):
        _costs(axes, measured)
    else:
        _dots(axes, measured)
    axes.grid(alpha=0.3)
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def _costs(axes: Any, entries: Sequence[dict[str, Any]]) -> None:
    """One line per method through its budgets; the plain model as a dashed level."""
    rows = [entry for entry in entries if entry["budget"] is not None]
    for label in dict.fromkeys(entry["label"] for entry in rows):
        points = sorted((e["macs"] / 1e9, 100 * e["top1"]) for e in rows if e["label"] == label)
        style = {"linewidth": 2.5} if label.startswith("FreqMerge") else {"linewidth": 1.2}
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=label, **style)
    for entry in entries:
        if entry["row"] == "plain":
            axes.axhline(100 * entry["top1"], color="0.5", linestyle="--", linewidth=1, label=entry["label"])
    axes.set(xlabel="GMACs per image", ylabel="top-1 (%)")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))


def _dots(axes: Any, entries: Sequence[dict[str, Any]]) -> None:
    """A dot per row with one standard error: a dot, because a bar would have to start at 0."""
    for height, entry in enumerate(entries):
        colour = "tab:red" if entry["label"].startswith("FreqMerge") else "tab:blue"
        error = 100 * entry["standard_error"]
        axes.errorbar(100 * entry["top1"], height, xerr=error, fmt="o", color=colour, capsize=3)
    axes.set_yticks(range(len(entries)), [entry["label"] for entry in entries])
    axes.invert_yaxis()
    axes.set_xlabel("top-1 (%) with one standard error, unpaired; the paired differences are in the table")
