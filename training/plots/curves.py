"""The course of a training run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model import files


def training_curves(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Loss and accuracy over epochs, written as PNG."""
    from matplotlib.figure import Figure  # slow to import, and only needed here

    figure = Figure(figsize=(10, 4), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    epochs = [entry["epoch"] for entry in history]
    for axes, parts, title in (
        (loss, (("train_loss", "training"), ("val_loss", "validation")), "Cross-entropy (nats)"),
        (accuracy, (("train_top1", "training"), ("val_top1", "validation")), "Top-1 accuracy (%)"),
    ):
        for key, label in parts:
            values = [entry.get(key) for entry in history]
            if any(value is not None for value in values):
                scale = 100 if key.endswith("top1") else 1
                axes.plot(
                    epochs,
                    [None if value is None else scale * value for value in values],
                    marker=".",
                    label=label,
                )
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        axes.legend()
        axes.xaxis.get_major_locator().set_params(integer=True)
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
