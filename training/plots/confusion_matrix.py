"""The confusion matrix, large enough to read a hundred names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor

from model import files
from training.measure.confusion import Pair, members, within_superclass, worst_pairs


def confusion_matrix(
    counts: Int[Tensor, "classes classes"], names: Sequence[str], superclasses: Sequence[str], path: Path
) -> None:
    """Shares of every true class (row), with the worst pairs in a list beside it.

    Classes are grouped by superclass where there are any.
    """
    from matplotlib.figure import Figure  # slow to import, and only needed here

    figure = Figure(figsize=(26, 20.5), layout="compressed")
    matrix, listing = figure.subplots(1, 2, width_ratios=[4.4, 1])
    groups = members(superclasses)
    _draw_matrix(
        figure, matrix, counts, names, [at for own in groups.values() for at in own] or list(range(len(names)))
    )
    _group(matrix, groups)
    _list_pairs(listing, worst_pairs(counts, names, 30))
    figure.suptitle(_title(counts, superclasses), fontsize=20)
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def _title(counts: Tensor, superclasses: Sequence[str]) -> str:
    title = f"{int(counts.sum()):,} images: {float(counts.diagonal().sum() / counts.sum()):.1%} right"
    if not superclasses:
        return title
    return f"{title}; {within_superclass(counts, superclasses):.0%} of the mistakes stay within their superclass"


def _draw_matrix(figure: Any, axes: Any, counts: Tensor, names: Sequence[str], order: list[int]) -> None:
    shares = counts[order][:, order].double()
    shares = shares / shares.sum(dim=1, keepdim=True).clamp(min=1)
    # the square root keeps a pair of 2 % visible beside a diagonal of 90 %
    picture = axes.imshow(shares.sqrt().numpy(), cmap="hot_r", vmin=0, vmax=1)
    labels = [names[index].replace("_", " ") for index in order]
    size = max(4, min(16, 900 / len(labels)))  # points: a row has about 1,000 for all
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=size)
    axes.set_yticks(range(len(labels)), labels, fontsize=size)
    axes.set_xlabel("taken for", fontsize=16)
    axes.set_ylabel("true class", fontsize=16)
    ticks = [0.0, 0.02, 0.1, 0.25, 0.5, 0.75, 1.0]
    bar = figure.colorbar(picture, ax=axes, location="bottom", shrink=0.4, aspect=50, pad=0.01)
    bar.set_ticks([tick**0.5 for tick in ticks], labels=[f"{tick:.0%}" for tick in ticks])
    bar.set_label("share of the true class's images")


def _group(axes: Any, groups: Mapping[str, Sequence[int]]) -> None:
    """A line between superclasses, and their names along the top; nothing where there are none."""
    if not groups:
        return
    start = 0
    middles = []
    for own in groups.values():
        middles.append(start + (len(own) - 1) / 2)
        start += len(own)
        axes.axhline(start - 0.5, color="0.7", linewidth=0.7)
        axes.axvline(start - 0.5, color="0.7", linewidth=0.7)
    top = axes.secondary_xaxis("top")
    top.set_xticks(
        middles,
        [name.replace("_", " ") for name in groups],
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
        pair_text = f"{pair.true} → {pair.taken_for}".replace("_", " ")
        height = 0.965 - 0.031 * line
        axes.text(0, height, pair_text, fontsize=14, va="top", transform=axes.transAxes)
        number = f"{pair.images} ({pair.share:.0%})"
        axes.text(1, height, number, fontsize=14, va="top", ha="right", transform=axes.transAxes)
