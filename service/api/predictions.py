"""From logits to the most probable labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.api.schemas import Prediction


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Softmax over the classes [classes]; sums to 1."""
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    shares: NDArray[np.float64] = shifted / shifted.sum()
    return shares


def doubts(best: Prediction, classes: int, certain_from: float | None) -> list[str]:
    """Why an answer whose most probable label is this one does not count as certain; empty where it does.

    It does from the checkpoint's threshold on, and where the checkpoint has none.
    """
    if certain_from is None or best["probability"] >= certain_from:
        return []
    return [
        f"the answer is uncertain: its best probability, {best['probability']:g}, is below {certain_from:g}; the "
        f"picture may show none of the {classes} classes"
    ]


def most_probable(logits: NDArray[np.float32], labels: Sequence[dict[str, Any]], top_k: int) -> list[Prediction]:
    """The `top_k` labels (or all) with their probabilities, most probable first; ties by class id."""
    shares = probabilities(logits)
    order = np.argsort(-shares, kind="stable")[:top_k]
    return [
        {
            "class_id": class_id,
            "label": labels[class_id]["label"],
            "superclass": labels[class_id]["superclass"],
            "probability": round(float(shares[class_id]), 6),
        }
        for class_id in order.tolist()
    ]
