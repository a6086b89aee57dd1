"""Which classes a model takes for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor


class Pair(NamedTuple):
    """Images of `true` that were taken for `taken_for`."""

    true: str
    taken_for: str
    images: int
    share: float
    """Of the images of `true`, 0..1."""


def confusion(
    labels: Int[Tensor, " count"], guesses: Int[Tensor, " count"], classes: int
) -> Int[Tensor, "classes classes"]:
    """How many images of class row were taken for class column, in the order of the class ids."""
    return torch.bincount(labels * classes + guesses, minlength=classes**2).reshape(classes, classes)


def members(superclasses: Sequence[str]) -> dict[str, list[int]]:
    """Class ids of each superclass, the superclasses by name."""
    return {
        name: [at for at, superclass in enumerate(superclasses) if superclass == name]
        for name in sorted(set(superclasses))
    }


def worst_pairs(counts: Int[Tensor, "classes classes"], names: Sequence[str], most: int = 20) -> list[Pair]:
    """The most frequent mistakes, most frequent first; ties by class id. Fewer where there are fewer mistakes."""
    wrong = counts.clone().fill_diagonal_(0)
    order = wrong.flatten().argsort(descending=True, stable=True)[:most].tolist()
    cells = [divmod(index, len(counts)) for index in order]
    return [
        Pair(
            names[true],
            names[taken],
            int(wrong[true, taken]),
            float(wrong[true, taken] / counts[true].sum()),
        )
        for true, taken in cells
        if wrong[true, taken]
    ]


def within_superclass(counts: Int[Tensor, "classes classes"], superclasses: Sequence[str]) -> float:
    """Share of the mistakes that stay inside the superclass, 0..1; 0 without mistakes."""
    codes = {name: index for index, name in enumerate(members(superclasses))}
    group = torch.tensor([codes[name] for name in superclasses])
    wrong = counts.clone().fill_diagonal_(0)
    inside = wrong[group[:, None] == group[None, :]].sum()
    return float(inside / wrong.sum()) if wrong.any() else 0.0
