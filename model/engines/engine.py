"""Engines run one batch of uint8 images on one device, synchronously: what they have in common, without torch.

`model.engines.choice.create_engine` makes one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, UInt8

from model.config import SCORE_NAMES
from model.errors import EngineError

MAX_BATCH_SIZE = 256
"""Largest batch of a compiled engine that is not told another one."""

KINDS = ("eager", "inductor", "openvino", "tensorrt")

Precision = Literal["fp32", "fp16", "bf16", "int8"]
"""Numbers of a backbone. int8 is OpenVINO's alone: the inputs and weights of linear layers, by quantization."""


class EngineOutput(NamedTuple):
    """Host arrays of one batch."""

    logits: Float[np.ndarray, "batch classes"]
    frequency_scores: Float[np.ndarray, "batch scores patches"]
    """The scores of `model.config.SCORE_NAMES`, in order, 0..1 per image."""
    source_maps: Int[np.ndarray, "batch merging_blocks patches"]
    """Owner of every patch after each merging block."""

    @property
    def frequency_score(self) -> Float[np.ndarray, "batch patches"]:
        """LFGM, of the channel mean."""
        return self.frequency_scores[:, SCORE_NAMES.index("lfgm")]

    @property
    def energy(self) -> Float[np.ndarray, "batch patches"]:
        """High-frequency energy of all channels."""
        return self.frequency_scores[:, SCORE_NAMES.index("energy")]

    @property
    def source_map(self) -> Int[np.ndarray, "batch patches"]:
        """Owner of every patch at the end."""
        return self.source_maps[:, -1]


@runtime_checkable
class Engine(Protocol):
    """Runs one batch on one device; not thread-safe: one caller at a time."""

    @property
    def kind(self) -> str:
        """'eager', 'inductor', 'openvino' or 'tensorrt'."""
        ...

    @property
    def device(self) -> str:
        """Such as 'cpu' or 'cuda:0'."""
        ...

    @property
    def precision(self) -> Precision:
        """Numbers of the backbone."""
        ...

    @property
    def reason(self) -> str:
        """Why this kind was taken; empty if it is what was asked for."""
        ...

    @property
    def max_batch_size(self) -> int:
        """Most images of one batch."""
        ...

    @property
    def native_size(self) -> int:
        """Side of the input images in pixels."""
        ...

    def warm_up(self) -> None:
        """Compiles and touches everything that the first requests would otherwise wait for."""
        ...

    def run(self, images: UInt8[np.ndarray, "batch 3 native native"]) -> EngineOutput:
        """The answer for 1..max_batch_size images; raises `EngineError`."""
        ...


def check_batch(images: np.ndarray, native_size: int, max_batch_size: int) -> None:
    """Raises `EngineError` unless these are 1..max_batch_size uint8 images of the native size."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (3, native_size, native_size):
        raise EngineError(
            f"expected uint8 images [batch, 3, {native_size}, {native_size}], found {images.dtype} {list(images.shape)}"
        )
    if not 1 <= len(images) <= max_batch_size:
        raise EngineError(f"expected 1..{max_batch_size} images, found {len(images)}; split the batch")


@contextmanager
def engine_errors(words: str) -> Iterator[None]:
    """A block whose every exception is an `EngineError` that begins with these words; one that is already stays.

    Libraries raise many types, also while they are imported: what goes wrong in making an engine must not keep the
    next one from serving.
    """
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        raise EngineError(f"{words}: {type(error).__name__}: {error}") from error
