"""Whether a compiled engine answers as eager does: compared at start, on pictures made here."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from model.config import SCORE_NAMES
from model.engines.engine import Engine, EngineOutput, Precision
from model.errors import EngineError

PICTURES = 4


class Tolerance(NamedTuple):
    """How far rounding may take an engine's answers from eager's in the same precision."""

    logits: float
    """Median over the pictures of the relative error of the logits, each picture's mean logit taken off."""
    score: float
    """Mean difference of a frequency score, which lies in 0..1."""


TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(0.01, 0.001),
    "fp16": Tolerance(0.05, 0.01),
    "bf16": Tolerance(0.15, 0.05),
    "int8": Tolerance(0.35, 0.05),
}
"""At least three times what eager in that precision was from eager float32, by tests/model/engines/rounding.py."""

WORST = 0.5
"""Relative error of the logits that no picture may pass: a merge that rounding turns moves them by less, the answer
for another picture by 0.8 or more."""


def pictures(side: int) -> UInt8[np.ndarray, "pictures 3 side side"]:
    """Four pictures with edges, slopes, texture and noise, the same at every call."""
    rows, columns = np.mgrid[0:side, 0:side] / side
    noise = np.random.default_rng(0).random((PICTURES, 3, side, side))
    disc = ((rows - 0.5) ** 2 + (columns - 0.4) ** 2 < 0.07).astype(float)
    stripes = (np.sin(40 * columns + 9 * rows) + 1) / 2
    planes = (
        (rows, columns, disc),
        (disc, stripes, 1 - rows),
        (0.2 + 0.5 * disc, 0.7 - 0.5 * disc * rows, 0.4 * columns),
        (stripes * rows, 1 - disc, columns),
    )
    texture = np.array([0.05, 0.2, 0.02, 0.4])[:, None, None, None]
    shares: np.ndarray = np.clip(np.array(planes) * (1 - texture) + noise * texture, 0, 1)
    return (shares * 255).astype(np.uint8)


def check(engine: Engine, reference: Engine, sizes: tuple[int, ...]) -> None:
    """Raises `EngineError` unless the engine answers as the reference at each of these batch sizes.

    The reference runs once, on four pictures or as many as it takes; no image of a batch influences another.
    """
    shown = pictures(engine.native_size)[: reference.max_batch_size]
    check_answers(engine, reference.run(shown), sizes, reference.kind)


def check_answers(engine: Engine, wanted: EngineOutput, sizes: tuple[int, ...], whose: str) -> None:
    """The same with answers that somebody gave before to the first of the `pictures`; `whose` names them."""
    shown = pictures(engine.native_size)[: len(wanted.logits)]
    for size in sizes:
        places = np.arange(size) % len(shown)
        found = engine.run(shown[places])
        expected = EngineOutput(*(part[places] for part in wanted))
        if trouble := _difference(found, expected, TOLERANCES[engine.precision]):
            raise EngineError(f"{engine.kind}: expected the answers of {whose} in a batch of {size}, found {trouble}")


def _difference(found: EngineOutput, wanted: EngineOutput, allowed: Tolerance) -> str:
    """What differs by more than rounding explains; empty if nothing does."""
    for name, part, other in zip(EngineOutput._fields, found, wanted, strict=True):
        if part.shape != other.shape:
            return f"{name} of shape {list(part.shape)}, not {list(other.shape)}"
        if not np.isfinite(part).all():
            return f"{name} that are not finite"
    scale = np.linalg.norm(wanted.logits - wanted.logits.mean(axis=1, keepdims=True), axis=1)
    errors = np.linalg.norm(found.logits - wanted.logits, axis=1) / np.maximum(scale, np.finfo(np.float32).tiny)
    median, worst = float(np.median(errors)), float(errors.max())
    if median > allowed.logits or worst > WORST:
        return f"logits off by {median:.2g} at the median and {worst:.2g} at worst (allowed: {allowed.logits}, {WORST})"
    differences = np.abs(found.frequency_scores - wanted.frequency_scores).mean(axis=(0, 2))
    for score, difference in zip(SCORE_NAMES, differences.tolist(), strict=True):
        if difference > allowed.score:
            return f"a frequency score off by {difference:.2g} ({score}; allowed: {allowed.score})"
    patches = wanted.source_maps.shape[2]
    for part, other in zip(
        found.source_maps.reshape(-1, patches), wanted.source_maps.reshape(-1, patches), strict=True
    ):
        if not np.array_equal(np.unique(part), np.unique(other)):  # such as indices that were rounded
            return "source maps with other tokens"
    return ""
