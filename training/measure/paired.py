"""Paired comparisons of two classifiers on the same images.

At 10,000 images and 80 % top-1 one accuracy has a standard error of 0.4 points; the images that both get right or
both get wrong say nothing about which is better, so a paired test sees differences that unpaired ones drown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

RESAMPLES = 10_000


class Comparison(NamedTuple):
    """How one classifier does against another; shares of 0..1."""

    difference: float
    """Own accuracy less the other's."""
    low: float
    high: float
    """Ends of the 95 % bootstrap interval of the difference."""
    p: float
    """Two-sided exact McNemar test; the largest over seeds where there are several."""
    wins: int
    """Images that only this one gets right (first seed)."""
    losses: int
    """Images that only the other gets right (first seed)."""


def mcnemar(wins: int, losses: int) -> float:
    """Two-sided exact p-value that both are equally often right where they disagree.

    McNemar (Psychometrika, 1947) with the binomial in place of the chi-square; whole-number arithmetic, so exact.
    """
    total, fewer = wins + losses, min(wins, losses)
    term = tail = 1
    for k in range(fewer):
        term = term * (total - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / 2**total) if total else 1.0


def bootstrap(
    differences: Float[np.ndarray, " images"], share: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean difference over images drawn with replacement.

    Images with equal differences are interchangeable, so the counts of each value are drawn, not the images.
    """
    values, counts = np.unique(differences, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(differences), counts / len(differences), size=resamples)
    means = drawn @ values / len(differences)
    low, high = np.quantile(means, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def compare(own: Bool[np.ndarray, "own_seeds images"], other: Bool[np.ndarray, "other_seeds images"]) -> Comparison:
    """`own` against `other`, one row of right answers per seed; a seed without a partner meets the other's first."""
    difference = own.mean(axis=0) - other.mean(axis=0)
    low, high = bootstrap(difference)
    discordant = [_discordant(own[seed], other[seed % len(other)]) for seed in range(len(own))]
    return Comparison(float(difference.mean()), low, high, max(mcnemar(*pair) for pair in discordant), *discordant[0])


class Confirmed(NamedTuple):
    """A comparison on two halves of the images, so that what one half chose the other can confirm; shares of 0..1."""

    chosen: float
    """Difference on the images with an even index."""
    confirmed: float
    """Difference on the others."""
    p: float
    """Two-sided exact McNemar test on the others; the largest over seeds."""


def confirm(own: Bool[np.ndarray, "own_seeds images"], other: Bool[np.ndarray, "other_seeds images"]) -> Confirmed:
    """The comparison of `own` and `other` on either half."""
    difference = own.mean(axis=0) - other.mean(axis=0)
    odd = [_discordant(own[seed, 1::2], other[seed % len(other), 1::2]) for seed in range(len(own))]
    return Confirmed(float(difference[::2].mean()), float(difference[1::2].mean()), max(mcnemar(*pair) for pair in odd))


def holm(values: Sequence[float]) -> list[float]:
    """The p-values of several tests, corrected so that one false alarm among all stays below the level.

    Holm's step-down procedure (Scandinavian Journal of Statistics, 1979); order is kept.
    """
    corrected, largest = [1.0] * len(values), 0.0
    for place, index in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        largest = max(largest, min(1.0, (len(values) - place) * values[index]))
        corrected[index] = largest
    return corrected


def standard_error(accuracy: float, images: int) -> float:
    """Standard error of one accuracy measured alone (binomial)."""
    return math.sqrt(accuracy * (1 - accuracy) / images)


def _discordant(own: Bool[np.ndarray, " images"], other: Bool[np.ndarray, " images"]) -> tuple[int, int]:
    return int((own & ~other).sum()), int((other & ~own).sum())
