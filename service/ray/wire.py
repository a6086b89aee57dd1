"""What travels between an ingress and an engine replica: pixels one way, rows the other, and who the model is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.config import ModelConfig
from model.engines.engine import EngineOutput, Precision
from model.manifest import Manifest
from service.batching.waiting import Answer
from service.errors import RequestError
from service.runtime.served import ServedModel


class Facts(NamedTuple):
    """What an engine says of itself."""

    kind: str
    device: str
    precision: Precision
    reason: str
    max_batch_size: int
    native_size: int


class Description(NamedTuple):
    """A served model without its engine: all that an ingress has to know, and no weights."""

    engine: Facts
    manifest: Manifest
    config: ModelConfig
    schedule: tuple[int, ...]
    grid: tuple[int, int]
    parameters: int


class Rows(NamedTuple):
    """The answers of one call, a row per image; logits that are not finite mark an image on which the engine failed."""

    logits: NDArray[np.float32]
    frequency_scores: NDArray[np.float32]
    source_maps: NDArray[np.uint16]
    """Owner of every patch after each merging block; a quarter of the engine's int64, which is most of an answer."""


Reply = Rows | RequestError
"""An error refuses the whole call. It is returned, not raised: a refusal is no fault of the replica."""


def describe(served: ServedModel) -> Description:
    """The description of a model whose engine runs here."""
    engine = served.engine
    facts = Facts(
        engine.kind, engine.device, engine.precision, engine.reason, engine.max_batch_size, engine.native_size
    )
    return Description(facts, served.manifest, served.config, served.schedule, served.grid, served.parameters)


def packed(ends: Sequence[Answer | Exception]) -> Reply:
    """The reply to a call whose images ended like this; raises what is no `RequestError`: a bug."""
    answers = [end for end in ends if isinstance(end, Answer)]
    errors = [end for end in ends if isinstance(end, Exception)]
    for error in errors:
        if not isinstance(error, RequestError):
            raise error
        if not answers:
            return error
    failed = np.full_like(answers[0].logits, np.nan)
    rows = [end if isinstance(end, Answer) else answers[0]._replace(logits=failed) for end in ends]
    return Rows(
        np.stack([row.logits for row in rows]),
        np.stack([row.frequency_scores for row in rows]),
        np.stack([row.source_maps for row in rows]).astype(np.uint16),
    )


def unpacked(rows: Rows) -> EngineOutput:
    """The rows as an engine on this machine would have given them."""
    return EngineOutput(rows.logits, rows.frequency_scores, rows.source_maps.astype(np.int64))
