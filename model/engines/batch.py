"""What goes into an engine and comes out of it, on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from model.errors import EngineError


class EngineOutput(NamedTuple):
    """Host arrays of one batch."""

    logits: Float[np.ndarray, "batch classes"]
    frequency_score: Float[np.ndarray, "batch patches"]
    source_maps: Int[np.ndarray, "batch merging_blocks patches"]
    """Owner of every patch after each merging block."""

    @property
    def source_map(self) -> Int[np.ndarray, "batch patches"]:
        """Owner of every patch at the end."""
        return self.source_maps[:, -1]


def check_batch(images: np.ndarray, native_size: int, max_batch_size: int) -> None:
    """Raises `EngineError` unless these are 1..max_batch_size uint8 images of the native size."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (3, native_size, native_size):
        raise EngineError(
            f"expected uint8 images [batch, 3, {native_size}, {native_size}], found {images.dtype} {list(images.shape)}"
        )
    if not 1 <= len(images) <= max_batch_size:
        raise EngineError(f"expected 1..{max_batch_size} images, found {len(images)}; split the batch")


def host_arrays(parts: Sequence[Tensor], count: int) -> EngineOutput:
    """Logits, score and source maps of the first `count` images, copied to the host once they are computed."""
    logits, score, owners = (part[:count].cpu().numpy() for part in parts)
    return EngineOutput(
        logits.astype(np.float32, copy=False), score.astype(np.float32, copy=False), owners.astype(np.int64, copy=False)
    )
