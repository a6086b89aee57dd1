"""Which training images a checkpoint has never been trained on, by its own record."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from training.data.images import Images, split_off


class Split(NamedTuple):
    """What `split_off` held out."""

    fraction: float
    seed: int


def unseen(training: Mapping[str, Any], load: Callable[[], Images]) -> Images | None:
    """The images that no stage of a training saw; None where there are none, or where it cannot be known.

    `training` is a manifest's record; `load` reads all the training images that it was made from, and is only called
    where some were held out.
    """
    splits = [_split(stage) for stage in _stages(training) if stage.get("data") == training.get("data")]
    known = [split for split in splits if split is not None]
    if len(known) < len(splits) or len({split.seed for split in known}) != 1 or not all(s.fraction for s in known):
        return None
    whole = load()
    if training.get("images") != len(whole) - round(len(whole) * known[0].fraction):
        return None  # other images than those of the run
    # with one seed, a smaller held-out part is the beginning of a larger one
    return split_off(whole, min(split.fraction for split in known), known[0].seed)[1]


def _stages(training: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The records of a training and of those before it that it was started from or is the mean of."""
    if members := training.get("averaged"):  # the mean itself saw nothing
        for member in members:
            yield from _stages(member["training"])
        return
    yield training
    if (before := training.get("started_from", {}).get("training")) is not None:
        yield from _stages(before)


def _split(stage: Mapping[str, Any]) -> Split | None:
    config = stage.get("config", {})
    if "val_fraction" not in config:
        return None
    seed = config.get("val_seed")
    return Split(config["val_fraction"], config["seed"] if seed is None else seed)
