"""BentoML: one service with a batchable API, whose files arrive as it hands them over: as paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bentoml
from pydantic import BaseModel

from tests.load.costed_engine import MAX_BATCH_SIZE, Cost
from tests.load.peers.work import Work

MAX_LATENCY_MS = 10_000
"""BentoML refuses with 503 what would take longer."""


class Arguments(BaseModel):
    """What `bentoml serve --arg NAME=VALUE` sets."""

    base_ms: float = 2.0
    per_image_ms: float = 0.1


arguments = bentoml.use_arguments(Arguments)
"""At module level, because BentoML's workers import this file rather than call it."""


@bentoml.service(workers=1, traffic={"timeout": 30, "max_concurrency": 1000}, logging={"access": {"enabled": False}})
class Classifier:
    """Decodes and infers in the worker process."""

    def __init__(self) -> None:
        self._work = Work(Cost(arguments.base_ms / 1000, arguments.per_image_ms / 1000))

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH_SIZE, max_latency_ms=MAX_LATENCY_MS, route="/classify")
    def classify(self, images: list[Path]) -> list[dict[str, Any]]:
        """Answers of a batch."""
        return self._work.infer([self._work.decode(path.read_bytes()) for path in images])
