"""Tiny real objects that stand in for the model."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.config import ModelConfig
from model.engines.engine import EngineOutput, Precision
from model.errors import EngineError
from model.images.preprocess import Preprocess
from model.labels import CLASS_NAMES, SUPERCLASSES
from model.manifest import Manifest
from service.runtime.loading import ModelLoader
from service.runtime.served import ServedModel
from service.settings import Settings

NATIVE = 8
GRID = (2, 3)
PATCHES = 6
SCORE = np.array([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], np.float32)
ENERGY = np.array([1.0, 0.1, 0.3, 0.5, 0.7, 0.0], np.float32)
SCORES = np.stack([SCORE, ENERGY])
"""As `model.config.SCORE_NAMES` orders them."""
SOURCE_MAPS = np.array([[0, 0, 1, 2, 3, 4], [0, 0, 1, 2, 2, 3]], np.int64)
SOURCE_MAP = SOURCE_MAPS[-1]
MERGE_LAYERS = (1, 3)
SCHEDULE = (6, 5, 5, 4)
POISON = 255


class FakeEngine:
    """An engine whose most probable class is the first byte of the image, so that every answer names its asker.

    It keeps the batches it has run as lists of those bytes. `hold` makes it wait inside `run`; `step` lets one
    waiting batch go on. An image that begins with `POISON` makes the whole batch fail.
    """

    def __init__(self, max_batch_size: int = 8) -> None:
        self.kind = "fake"
        self.device = "cpu"
        self.precision: Precision = "fp32"
        self.reason = "a double"
        self.max_batch_size = max_batch_size
        self.native_size = NATIVE
        self.batches: list[list[int]] = []
        self.warm = False
        self.entered = threading.Semaphore(0)
        self.failures_left = 0
        self.fault: Callable[[list[int]], None] = lambda values: None
        self.nan_for: int | None = None
        self._gate = threading.Semaphore(0)
        self._held = False

    def warm_up(self) -> None:
        """Notes that it was called."""
        self.warm = True

    def hold(self) -> None:
        """From now on `run` waits for `step` or `release`."""
        self._held = True

    def step(self) -> None:
        """Lets one waiting batch run."""
        self._gate.release()

    def release(self) -> None:
        """Lets everything run."""
        self._held = False
        self._gate.release(1000)

    def run(self, images: NDArray[np.uint8]) -> EngineOutput:
        """Logits with a 1 at the class that the first byte names."""
        if images.shape[1:] != (3, NATIVE, NATIVE):
            raise EngineError(f"expected images of 3 x {NATIVE} x {NATIVE}, found {images.shape}")
        values = [int(image.flat[0]) for image in images]
        self.entered.release()
        if self._held:
            self._gate.acquire()
        self.fault(values)
        if self.failures_left:
            self.failures_left -= 1
            raise EngineError("the double was told to fail")
        if POISON in values:
            raise EngineError("the batch holds poison")
        self.batches.append(values)
        logits = np.zeros((len(values), len(CLASS_NAMES)), np.float32)
        logits[np.arange(len(values)), [value % len(CLASS_NAMES) for value in values]] = 1
        if self.nan_for in values:
            logits[values.index(self.nan_for), 42] = np.nan
        return EngineOutput(logits, np.tile(SCORES, (len(values), 1, 1)), np.tile(SOURCE_MAPS, (len(values), 1, 1)))


def served(engine: FakeEngine, certain_from: float | None = None) -> ServedModel:
    """The double as a model with CIFAR-100's labels."""
    manifest = Manifest(
        name="double",
        digest="0" * 64,
        config=ModelConfig(merge_layers=MERGE_LAYERS),
        preprocess=Preprocess(native_size=NATIVE),
        class_names=CLASS_NAMES,
        superclasses=SUPERCLASSES,
        scores={"top1": 0.5, "top5": 0.75},
        certain_from=certain_from,
        versions={"torch": "0"},
        training={},
    )
    return ServedModel(engine, manifest, manifest.config, SCHEDULE, GRID, 123)


def loader(engine: FakeEngine, certain_from: float | None = None) -> ModelLoader:
    """A loader that gives the double at once."""

    def load(settings: Settings) -> ServedModel:
        return served(engine, certain_from)

    return load


def picture(value: int = 7, size: tuple[int, int] = (NATIVE, NATIVE), format: str = "PNG") -> bytes:
    """A grey picture file whose first byte, as the engine sees it, is `value`."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(buffer, format)
    return buffer.getvalue()


def pixels(value: int) -> NDArray[np.uint8]:
    """What the engine gets of `picture(value)`."""
    return np.full((3, NATIVE, NATIVE), value, np.uint8)
