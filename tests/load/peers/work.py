"""What every server in the comparison does with a picture: the service's own decoding, the same engine, one answer."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.pictures.jobs import decode_file
from service.settings import Settings
from tests.load.costed_engine import MAX_BATCH_SIZE, NATIVE, Cost, CostedEngine

TOP = 5

Pixels = NDArray[np.uint8]


class Work:
    """Decoding and inference, apart, so that a server can place them where its design wants them."""

    def __init__(self, cost: Cost) -> None:
        self._engine = CostedEngine(cost)
        self._settings = Settings()
        self._engine.run(np.zeros((1, 3, NATIVE, NATIVE), np.uint8))
        self.decode(_blank())  # imports what decoding needs

    def decode(self, data: bytes) -> Pixels:
        """uint8 [3, 32, 32] of a file."""
        return decode_file(data, self._settings, NATIVE).pixels

    def infer(self, images: Sequence[Pixels]) -> list[dict[str, Any]]:
        """One answer per image, at the cost of one batch for every `MAX_BATCH_SIZE` of them."""
        answers: list[dict[str, Any]] = []
        for start in range(0, len(images), MAX_BATCH_SIZE):
            output = self._engine.run(np.stack(images[start : start + MAX_BATCH_SIZE]))
            answers += [_top(row) for row in output.logits]
        return answers


def options() -> argparse.Namespace:
    """Port and cost of the engine, from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--base-ms", type=float, default=2.0)
    parser.add_argument("--per-image-ms", type=float, default=0.1)
    return parser.parse_args()


def cost_of(arguments: argparse.Namespace) -> Cost:
    """The cost that the command line names."""
    return Cost(arguments.base_ms / 1000, arguments.per_image_ms / 1000)


def _top(logits: NDArray[np.float32]) -> dict[str, Any]:
    best = np.argsort(logits)[::-1][:TOP]
    odds = np.exp(logits - logits.max())
    odds /= odds.sum()
    return {"predictions": [{"class_id": int(one), "probability": float(odds[one])} for one in best]}


def _blank() -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (NATIVE, NATIVE)).save(buffer, "PNG")
    return buffer.getvalue()
