"""Which picture gets which merging schedule, so that all of them together cost on average what one schedule costs.

Schedules are numbered from the cheapest to the dearest; a choice is one such number per picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from training.errors import BudgetError

STEEPEST, STEPS = 1e12, 200
"""Of the bisection for the shares."""


class Mix(NamedTuple):
    """Schedules that share the pictures, and the one whose cost is their mean."""

    schedules: tuple[int, ...]
    """From the cheapest to the dearest."""
    mean: int
    """The schedule that all pictures together cost on average."""


def mixes(schedules: int) -> list[Mix]:
    """For every schedule but the cheapest and the dearest: its two neighbours, and all schedules."""
    every = tuple(range(schedules))
    return [Mix(chosen, i) for i in every[1:-1] for chosen in ((i - 1, i + 1), every)]


def even_shares(costs: Sequence[int], mean: int) -> Float[np.ndarray, " schedules"]:
    """The share of pictures of every schedule, as even as the mean cost allows.

    Of all shares with this mean those of largest entropy, which are proportional to exp(β cost) (Jaynes, "Information
    theory and statistical mechanics", Physical Review 1957); of two schedules, the only ones. Raises `BudgetError`
    unless the mean lies between the cheapest and the dearest.
    """
    span = max(costs) - min(costs)
    if not min(costs) < mean < max(costs):
        raise BudgetError(
            f"budget: expected a mean cost between {min(costs) / 1e9:.4g} and {max(costs) / 1e9:.4g} GMACs, found "
            f"{mean / 1e9:.4g}; choose keep rates that leave different numbers of tokens"
        )
    centred = (np.asarray(costs, dtype=float) - mean) / span
    low, high = -STEEPEST, STEEPEST
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if _shares(middle, centred) @ centred < 0 else (low, middle)
    return _shares((low + high) / 2, centred)


def _shares(slope: float, centred: Float[np.ndarray, " schedules"]) -> Float[np.ndarray, " schedules"]:
    exponent = slope * centred
    weights = np.exp(exponent - exponent.max())
    return np.asarray(weights / weights.sum())


def by_rank(
    statistic: Float[np.ndarray, " images"], shares: Float[np.ndarray, " schedules"]
) -> Int[np.ndarray, " images"]:
    """The pictures in the order of a statistic, split by shares: those with the most get the dearest schedule.

    The mean cost is that of the shares to within half a picture; of equal pictures the earlier one counts as less.
    """
    ends = np.round(np.cumsum(shares) * len(statistic)).astype(int)
    places = np.empty(len(statistic), dtype=int)
    places[np.argsort(statistic, kind="stable")] = np.repeat(np.arange(len(shares)), np.diff(ends, prepend=0))
    return places


def by_threshold(
    statistic: Float[np.ndarray, " images"],
    others: Float[np.ndarray, " others"],
    shares: Float[np.ndarray, " schedules"],
) -> Int[np.ndarray, " images"]:
    """The same with thresholds that split other pictures by these shares, as a service would have them beforehand.

    The mean cost is that of the shares only as far as the pictures are like the others.
    """
    thresholds = np.quantile(others, np.cumsum(shares)[:-1].clip(0, 1))
    return np.asarray(np.searchsorted(thresholds, statistic, side="right"))


def oracle(right: Bool[np.ndarray, "schedules images"], costs: Sequence[int], mean: int) -> Int[np.ndarray, " images"]:
    """The choice with the most right answers whose mean cost is at most `mean`, and of these the cheapest.

    A picture needs the cheapest schedule that is right, or none beyond the cheapest of all. Every picture counts the
    same, so those whose need costs least go first until the mean is spent. `costs` must rise.
    """
    needed = np.where(right.any(axis=0), right.argmax(axis=0), 0)
    extra = np.asarray(costs, dtype=np.int64)[needed] - costs[0]
    order = np.argsort(extra, kind="stable")
    served = order[np.cumsum(extra[order]) <= (mean - costs[0]) * len(order)]
    places = np.zeros(len(order), dtype=int)
    places[served] = needed[served]
    return places


def answered(
    right: Bool[np.ndarray, "schedules images"], places: Int[np.ndarray, " images"]
) -> Bool[np.ndarray, " images"]:
    """Which pictures are right under the schedules chosen for them."""
    return np.asarray(right[places, np.arange(len(places))])
