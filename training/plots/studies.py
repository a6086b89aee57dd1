"""What a study found, drawn from its records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model import files


def study(entries: Sequence[dict[str, Any]], path: Path) -> None:
    """Paired differences where rows are tested; top-1 against cost where methods meet at budgets."""
    from matplotlib.figure import Figure  # slow to import, and only needed here

    measured = [entry for entry in entries if "top1" in entry]
    budgets = any(entry["budget"] is not None for entry in measured)
    tested = [entry for entry in measured if entry.get("against")]
    figure = Figure(layout="constrained")
    if tested and (not budgets or tested[0].get("study") == "score"):
        _differences(figure, tested, {entry["row"]: entry["label"] for entry in measured})
    else:
        figure.set_size_inches(10, 5)
        axes = figure.subplots()
        _costs(axes, measured) if budgets else _dots(axes, measured)
        axes.grid(alpha=0.3)
    figure.suptitle(_origin(measured), fontsize=10)
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def _origin(entries: Sequence[dict[str, Any]]) -> str:
    """Which study this is, and of what."""
    first = entries[0] if entries else {}
    parts = [f"study {first['study']}"] if "study" in first else []
    parts += [str(first["checkpoint"])] if "checkpoint" in first else []
    parts += [f"{first['images']:,} test images"] if "images" in first else []
    return ", ".join(parts)


def _differences(figure: Any, entries: Sequence[dict[str, Any]], names: Mapping[str, str]) -> None:
    """One panel per schedule: every row's paired difference from the first reference, with its 95 % interval."""
    first = next(iter(entries[0]["against"]))
    entries = [entry for entry in entries if _compared(entry, first)]
    labels = list(dict.fromkeys(entry["label"] for entry in entries))
    shares = list(dict.fromkeys(entry["budget"] for entry in entries))
    figure.set_size_inches(4 + 3.2 * len(shares), 1.8 + 0.27 * len(labels))
    panels = figure.subplots(1, len(shares), sharey=True, squeeze=False)[0]
    for axes, share in zip(panels, shares, strict=True):
        rows = [entry for entry in entries if entry["budget"] == share]
        for entry in rows:
            _difference(axes, labels.index(entry["label"]), entry["label"], _compared(entry, first))
        axes.axvline(0, color="0.3", linewidth=1)
        axes.grid(alpha=0.3)
        if len(shares) > 1:
            title = "the checkpoint's schedule" if share is None else f"{share:.0%} of the plain cost"
            axes.set_title(title, fontsize=10)
        axes.set_xlabel(f"points against {names.get(first, first)}", fontsize=9)
    panels[0].set_yticks(range(len(labels)), labels, fontsize=8)
    panels[0].invert_yaxis()


def _compared(entry: dict[str, Any], reference: str) -> dict[str, float]:
    """The comparison with a reference of the entry's own schedule; empty where there is none."""
    pairs: dict[str, dict[str, float]] = {other.rpartition("/")[2]: pair for other, pair in entry["against"].items()}
    return pairs.get(reference.rpartition("/")[2], {})


def _difference(axes: Any, height: int, label: str, pair: Mapping[str, float]) -> None:
    """Red for forms of FreqMerge, grey for controls, blue for the others."""
    colour = {"FreqMerge": "tab:red", "control:": "0.5"}.get(label.split(",")[0].split()[0], "tab:blue")
    middle, low, high = (100 * pair[key] for key in ("difference", "low", "high"))
    axes.errorbar(middle, height, xerr=[[middle - low], [high - middle]], fmt="o", markersize=4, color=colour)


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
