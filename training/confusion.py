"""Which classes a model takes for which."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from model.labels import CLASS_NAMES, MEMBERS, SUPERCLASS_OF


class Pair(NamedTuple):
    """Images of `true` that were taken for `taken_for`."""

    true: str
    taken_for: str
    images: int
    share: float
    """Of the images of `true`, 0..1."""


def confusion(labels: Int[Tensor, " count"], guesses: Int[Tensor, " count"]) -> Int[Tensor, "classes classes"]:
    """How many images of class row were taken for class column, in the order of the class ids."""
    classes = len(CLASS_NAMES)
    return torch.bincount(labels * classes + guesses, minlength=classes**2).reshape(classes, classes)


def by_superclass() -> list[int]:
    """Class ids with the members of each superclass side by side."""
    place = {name: index for index, name in enumerate(CLASS_NAMES)}
    return [place[name] for members in MEMBERS.values() for name in members]


def worst_pairs(counts: Int[Tensor, "classes classes"], most: int = 20) -> list[Pair]:
    """The most frequent mistakes, most frequent first; ties by class id. Fewer where there are fewer mistakes."""
    wrong = counts.clone().fill_diagonal_(0)
    order = wrong.flatten().argsort(descending=True, stable=True)[:most].tolist()
    cells = [divmod(index, len(counts)) for index in order]
    return [
        Pair(
            CLASS_NAMES[true],
            CLASS_NAMES[taken],
            int(wrong[true, taken]),
            float(wrong[true, taken] / counts[true].sum()),
        )
        for true, taken in cells
        if wrong[true, taken]
    ]


def within_superclass(counts: Int[Tensor, "classes classes"]) -> float:
    """Share of the mistakes that stay inside the superclass, 0..1; 0 without mistakes."""
    codes = {name: index for index, name in enumerate(MEMBERS)}
    group = torch.tensor([codes[SUPERCLASS_OF[name]] for name in CLASS_NAMES])
    wrong = counts.clone().fill_diagonal_(0)
    inside = wrong[group[:, None] == group[None, :]].sum()
    return float(inside / wrong.sum()) if wrong.any() else 0.0
