"""The jobs of the worker threads: decoding, drawing, encoding. Blocking."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.config import ScoreName
from model.images.pictures import network_side
from service.pictures.colormaps import Colormap
from service.pictures.decode_pool import DecodeWorkers
from service.pictures.decoding import decode, network_input
from service.pictures.heatmap import ImageFormat, View, encode, render
from service.pictures.memory_budget import ByteBudget
from service.settings import Settings
from service.store.image_store import StoredImage


class Decoded(NamedTuple):
    """A picture file, and uint8 [3, native, native] of it."""

    data: bytes
    pixels: NDArray[np.uint8]
    warnings: tuple[str, ...] = ()


class Drawing(NamedTuple):
    """How to draw a heatmap."""

    view: View
    colormap: Colormap
    opacity: float
    size: int
    format: ImageFormat
    block: int = -1
    """Position, among the merging blocks, of the one whose tokens are drawn."""
    score: ScoreName = "lfgm"


def decode_file(
    data: bytes, settings: Settings, native_size: int, budget: ByteBudget | None = None, **costly: Any
) -> Decoded:
    """What the engine needs of a picture file; raises and takes `costly` as `decoding.decode` does."""
    picture = decode(data, **_limits(settings), keep_side=network_side(native_size), budget=budget, **costly)
    return Decoded(data, network_input(picture, native_size), picture.warnings)


def by(workers: DecodeWorkers, wanted: Callable[[], bool]) -> dict[str, Any]:
    """How a thread that may wait decodes a costly picture: by a process, for as long as it is wanted."""
    return {"elsewhere": partial(workers.decode, wanted=wanted)}


def _limits(settings: Settings) -> dict[str, Any]:
    return {
        "max_pixels": settings.max_pixels,
        "max_full_pixels": settings.max_full_pixels,
        "max_side": settings.max_side,
    }


def draw(
    stored: StoredImage, grid: tuple[int, int], how: Drawing, settings: Settings, budget: ByteBudget, **costly: Any
) -> bytes:
    """A heatmap on the picture itself, at its own resolution up to `how.size`, as a file."""
    picture = decode(stored.data, **_limits(settings), keep_side=max(how.size, 16), budget=budget, **costly)
    image = render(
        picture.image,
        stored.score(how.score),
        stored.source_maps[how.block],
        grid,
        view=how.view,
        colormap=how.colormap,
        opacity=how.opacity,
        size=how.size,
        score_name=how.score,
    )
    return encode(image, how.format)
