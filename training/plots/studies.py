"""What a study found, drawn from its records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model import files


def study(entries: Sequence[dict[str, Any]], path: Path) -> None:
    """Top-1 of every row against its cost where budgets are compared, else one dot per row."""
    from matplotlib.figure import Figure  # slow to import, and only needed here

    measured = [entry for entry in entries if "top1" in entry]
    if all(entry.get("study") == "score" for entry in entries):
        figure = Figure(figsize=(4 + 3 * len({entry["budget"] for entry in measured}), 9), layout="constrained")
        _differences(figure, measured)
        return _save(figure, path)
    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    if any(entry["budget"] is not None for entry in measured):
        _costs(axes, measured)
    else:
        _dots(axes, measured)
    axes.grid(alpha=0.3)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def _differences(figure: Any, entries: Sequence[dict[str, Any]]) -> None:
    """One panel per schedule: every row's paired difference from ToMe on the same blocks, with its 95 % interval."""
    paired = [entry for entry in entries if entry["against"]]
    labels = list(dict.fromkeys(entry["label"] for entry in paired))
    shares = list(dict.fromkeys(entry["budget"] for entry in paired))
    panels = figure.subplots(1, len(shares), sharey=True, squeeze=False)[0]
    for axes, share in zip(panels, shares, strict=True):
        for entry in paired:
            if entry["budget"] != share:
                continue
            found = next(iter(entry["against"].values()))
            colour = {"F": "tab:red", "c": "0.5"}.get(entry["label"][0], "tab:blue")
            middle, low, high = (100 * found[key] for key in ("difference", "low", "high"))
            error = [[middle - low], [high - middle]]
            axes.errorbar(middle, labels.index(entry["label"]), xerr=error, fmt="o", markersize=4, color=colour)
        axes.axvline(0, color="0.3", linewidth=1)
        axes.grid(alpha=0.3)
        axes.set_title("the checkpoint's schedule" if share is None else f"{share:.0%} of the plain cost", fontsize=10)
        axes.set_xlabel("points against ToMe")
    panels[0].set_yticks(range(len(labels)), labels, fontsize=8)
    panels[0].invert_yaxis()


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
