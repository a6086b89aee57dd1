"""The confusion matrix of 100 classes, large enough to read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor

from model import files
from model.labels import CLASS_NAMES, MEMBERS
from training.confusion import Pair, by_superclass, within_superclass, worst_pairs


def confusion_matrix(counts: Int[Tensor, "classes classes"], path: Path) -> None:
    """Shares of every true class (row), classes grouped by superclass, with the worst pairs in a list beside it."""
    from matplotlib.figure import Figure  # slow to import, and only needed here

    figure = Figure(figsize=(26, 20.5), layout="compressed")
    matrix, listing = figure.subplots(1, 2, width_ratios=[4.4, 1])
    _draw_matrix(figure, matrix, counts)
    _list_pairs(listing, worst_pairs(counts, 30))
    accuracy = float(counts.diagonal().sum() / counts.sum())
    figure.suptitle(
        f"{int(counts.sum()):,} images: {accuracy:.1%} right; {within_superclass(counts):.0%} of the mistakes stay "
        "within their superclass",
        fontsize=20,
    )
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def _draw_matrix(figure: Any, axes: Any, counts: Tensor) -> None:
    order = by_superclass()
    shares = counts[order][:, order].double()
    shares = shares / shares.sum(dim=1, keepdim=True).clamp(min=1)
    # the square root keeps a pair of 2 % visible beside a diagonal of 90 %
    picture = axes.imshow(shares.sqrt().numpy(), cmap="hot_r", vmin=0, vmax=1)
    names = [CLASS_NAMES[index].replace("_", " ") for index in order]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=9)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_xlabel("taken for", fontsize=16)
    axes.set_ylabel("true class", fontsize=16)
    _group(axes)
    ticks = [0.0, 0.02, 0.1, 0.25, 0.5, 0.75, 1.0]
    bar = figure.colorbar(picture, ax=axes, location="bottom", shrink=0.4, aspect=50, pad=0.01)
    bar.set_ticks([tick**0.5 for tick in ticks], labels=[f"{tick:.0%}" for tick in ticks])
    bar.set_label("share of the true class's images")


def _group(axes: Any) -> None:
    """A line between superclasses, and their names along the top."""
    start = 0
    middles = []
    for members in MEMBERS.values():
        middles.append(start + (len(members) - 1) / 2)
        start += len(members)
        axes.axhline(start - 0.5, color="0.7", linewidth=0.7)
        axes.axvline(start - 0.5, color="0.7", linewidth=0.7)
    top = axes.secondary_xaxis("top")
    top.set_xticks(
        middles,
        [name.replace("_", " ") for name in MEMBERS],
        rotation=35,
        ha="left",
        rotation_mode="anchor",
        fontsize=11,
        fontweight="bold",
    )
    top.tick_params(length=0)


def _list_pairs(axes: Any, pairs: Sequence[Pair]) -> None:
    axes.axis("off")
    axes.text(0, 1, "Worst pairs", fontsize=20, fontweight="bold", va="top", transform=axes.transAxes)
    for line, pair in enumerate(pairs):
        told = f"{pair.true} → {pair.taken_for}".replace("_", " ")
        height = 0.965 - 0.031 * line
        axes.text(0, height, told, fontsize=14, va="top", transform=axes.transAxes)
        number = f"{pair.images} ({pair.share:.0%})"
        axes.text(1, height, number, fontsize=14, va="top", ha="right", transform=axes.transAxes)
