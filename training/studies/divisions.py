"""The rows of the study of budgets by picture: one schedule for all pictures, or the pictures divided among several."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from model import ModelConfig
from model.config import Scoring
from model.merging.strategies import STRATEGIES
from training.measure.bench import Cost
from training.measure.paired import compare, standard_error
from training.measure.picture_statistics import ENERGIES, FIRST_BLOCK, STATISTICS
from training.studies import assignment
from training.studies.assignment import Mix

SCHEDULE, RANDOM, ORACLE, OPPOSITE = "schedule", "random", "oracle", "opposite "
"""Rows beside those of the statistics; the last one is the beginning of its name."""


class Scored(NamedTuple):
    """The schedules of one strategy on the test images, from the cheapest to the dearest."""

    strategy: Scoring
    configs: tuple[ModelConfig, ...]
    costs: tuple[Cost, ...]
    right: Bool[np.ndarray, "schedules images"]

    @property
    def macs(self) -> list[int]:
        """Multiply-accumulates of an image under each schedule."""
        return [cost.macs for cost in self.costs]


Seen = dict[str, Float[np.ndarray, "_"]]
"""The statistics of pictures, by name."""


def divide(scored: Scored, seen: Seen, others: Seen | None, seeds: int) -> list[dict[str, Any]]:
    """One entry per schedule for all pictures, then per way of dividing them: scores, cost, paired comparisons.

    `others` are the statistics of the pictures that set the thresholds; None divides by rank.
    """
    rows = [_schedule_entry(scored, place) for place in range(len(scored.configs))]
    for mix in assignment.mixes(len(scored.configs)):
        chosen = choices(scored, mix, seen, others, seeds)
        answered = {name: _answered(scored, places) for name, places in chosen.items()}
        answered[SCHEDULE] = scored.right[[mix.mean]]
        rows += [_choice_entry(scored, mix, name, places, answered) for name, places in chosen.items()]
    return rows


def choices(
    scored: Scored, mix: Mix, seen: Seen, others: Seen | None, seeds: int
) -> dict[str, Int[np.ndarray, "_ images"]]:
    """The schedule of every picture, by what chooses it; several draws of the choice at random."""
    within = list(mix.schedules)
    macs, mean = [scored.macs[place] for place in within], scored.macs[mix.mean]
    shares = assignment.even_shares(macs, mean)

    def placed(name: str, sign: int) -> Int[np.ndarray, " images"]:
        if others is None:
            return assignment.by_rank(sign * seen[name], shares)
        return assignment.by_threshold(sign * seen[name], sign * others[name], shares)

    images = scored.right.shape[1]
    drawn = [assignment.by_rank(np.random.default_rng(seed).random((images,)), shares) for seed in range(seeds)]
    placements = {RANDOM: np.stack(drawn)}
    placements |= {name: placed(name, 1)[None] for name in STATISTICS}
    placements |= {f"{OPPOSITE}{name}": placed(name, -1)[None] for name in ENERGIES}
    placements[ORACLE] = assignment.oracle(scored.right[within], macs, mean)[None]
    return {name: np.asarray(within)[places] for name, places in placements.items()}


def _answered(scored: Scored, places: Int[np.ndarray, "draws images"]) -> Bool[np.ndarray, "draws images"]:
    return np.stack([assignment.answered(scored.right, each) for each in places])


def _schedule_entry(scored: Scored, place: int) -> dict[str, Any]:
    """One schedule for all pictures."""
    right = scored.right[place]
    top1 = float(right.mean())
    return {
        **_named(scored, SCHEDULE),
        "keep_rates": [scored.configs[place].keep_rate],
        "mean_rate": scored.configs[place].keep_rate,
        "pictures": [len(right)],
        "config": scored.configs[place].model_dump(mode="json"),
        "top1": top1,
        "standard_error": standard_error(top1, len(right)),
        **scored.costs[place]._asdict(),
        "against": {},
    }


def _choice_entry(
    scored: Scored,
    mix: Mix,
    name: str,
    places: Int[np.ndarray, "draws images"],
    answered: dict[str, Bool[np.ndarray, "_ images"]],
) -> dict[str, Any]:
    """One way of dividing the pictures, compared on the same pictures."""
    own, images = answered[name], places.shape[1]
    per_seed = own.mean(axis=1).tolist()
    top1 = float(own.mean())
    rivals = [SCHEDULE, *([] if name == RANDOM else [RANDOM]), *(FIRST_BLOCK if name in ENERGIES else [])]
    return {
        **_named(scored, name),
        "keep_rates": [scored.configs[place].keep_rate for place in mix.schedules],
        "mean_rate": scored.configs[mix.mean].keep_rate,
        "pictures": [int((places[0] == place).sum()) for place in mix.schedules],
        "top1": top1,
        "top1_per_seed": per_seed,
        "standard_error": standard_error(top1, images),
        "macs": float(np.asarray(scored.macs)[places].mean()),
        "against": {rival: compare(*_paired(own, answered[rival]))._asdict() for rival in rivals},
    }


def _paired(
    own: Bool[np.ndarray, "draws images"], other: Bool[np.ndarray, "other_draws images"]
) -> tuple[Bool[np.ndarray, "most images"], Bool[np.ndarray, "other_draws images"]]:
    """A single choice once for every draw of the other, so that the p-value is the largest over the draws."""
    return (np.repeat(own, len(other), axis=0) if len(own) == 1 else own), other


def _named(scored: Scored, row: str) -> dict[str, Any]:
    label = STRATEGIES[scored.strategy].label
    return {"strategy": scored.strategy, "strategy_label": label, "row": row}
