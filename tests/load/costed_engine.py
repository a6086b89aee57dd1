"""A model of known cost: every batch takes a fixed time plus a fixed time per image, and no computing."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from service.runtime.loading import ModelLoader
from service.runtime.served import ServedModel
from service.settings import Settings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from model.engines.engine import EngineOutput, Precision

NATIVE = 32
GRID = (14, 14)
MERGING_BLOCKS = 4
"""Those of the default config; nothing merges in them."""
DEPTH = 12
CLASSES = 100
MAX_BATCH_SIZE = 64


@dataclass(frozen=True, slots=True)
class Cost:
    """What a batch takes, in seconds."""

    base_s: float = 0.002
    per_image_s: float = 0.0001

    def batch_s(self, images: int) -> float:
        """Time of one batch."""
        return self.base_s + self.per_image_s * images

    def images_per_s(self, images: int) -> float:
        """Most images a second that batches of this size allow."""
        return images / self.batch_s(images)


class CostedEngine:
    """An engine that sleeps as long as its cost says, which frees the interpreter as an accelerator does."""

    def __init__(self, cost: Cost, max_batch_size: int = MAX_BATCH_SIZE) -> None:
        from model.config import SCORE_NAMES

        self.kind = "fake"
        self.device = "cpu"
        self.precision: Precision = "fp32"
        self.reason = ""
        self.max_batch_size = max_batch_size
        self.native_size = NATIVE
        self._cost = cost
        patches = GRID[0] * GRID[1]
        self._logits = np.linspace(0, 1, CLASSES, dtype=np.float32)[None]
        self._scores = np.tile(np.linspace(0, 1, patches, dtype=np.float32), (1, len(SCORE_NAMES), 1))
        self._sources = np.tile(np.arange(patches, dtype=np.int64), (1, MERGING_BLOCKS, 1))

    def warm_up(self) -> None:
        """Nothing has to be warmed."""

    def run(self, images: NDArray[np.uint8]) -> EngineOutput:
        """The same answer for every image, after the time that the batch costs."""
        from model.engines.engine import EngineOutput

        count = len(images)
        time.sleep(self._cost.batch_s(count))
        return EngineOutput(
            np.repeat(self._logits, count, 0), np.repeat(self._scores, count, 0), np.repeat(self._sources, count, 0)
        )


def costed_loader(cost: Cost) -> ModelLoader:
    """A loader of a `CostedEngine` with the labels of CIFAR-100."""

    def load(settings: Settings) -> ServedModel:
        from model.config import ModelConfig
        from model.images.preprocess import Preprocess
        from model.labels import CLASS_NAMES, SUPERCLASSES
        from model.manifest import Manifest

        manifest = Manifest(
            name="fake",
            digest="0" * 64,
            config=ModelConfig(),
            preprocess=Preprocess(native_size=NATIVE),
            class_names=CLASS_NAMES,
            superclasses=SUPERCLASSES,
            scores={},
            versions={},
            training={},
        )
        engine = CostedEngine(cost, min(MAX_BATCH_SIZE, settings.max_batch_size))
        schedule = (GRID[0] * GRID[1],) * DEPTH
        return ServedModel(engine, manifest, manifest.config, schedule, GRID, 0)

    return load
