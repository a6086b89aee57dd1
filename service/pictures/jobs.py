"""The jobs of the worker threads: decoding, drawing, encoding. Blocking."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.config import ScoreName
from model.images.pictures import network_side
from service.pictures.colormaps import Colormap
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
    data: bytes, settings: Settings, native_size: int, budget: ByteBudget | None = None, **how: Any
) -> Decoded:
    """What the engine needs of a picture file; raises and takes `how` as `decoding.decode` does."""
    picture = decode(data, **_limits(settings), keep_side=network_side(native_size), budget=budget, **how)
    return Decoded(data, network_input(picture, native_size), picture.warnings)


def _limits(settings: Settings) -> dict[str, Any]:
    return {
        "max_pixels": settings.max_pixels,
        "max_full_pixels": settings.max_full_pixels,
        "max_side": settings.max_side,
    }


def draw(
    stored: StoredImage,
    grid: tuple[int, int],
    drawing: Drawing,
    settings: Settings,
    budget: ByteBudget,
    **how: Any,
) -> bytes:
    """A heatmap on the picture itself, at its own resolution up to `drawing.size`, as a file; `how` is for `decode`."""
    picture = decode(stored.data, **_limits(settings), keep_side=max(drawing.size, 16), budget=budget, **how)
    image = render(
        picture.image,
        stored.score(drawing.score),
        stored.source_maps[drawing.block],
        grid,
        view=drawing.view,
        colormap=drawing.colormap,
        opacity=drawing.opacity,
        size=drawing.size,
        score_name=drawing.score,
    )
    return encode(image, drawing.format)
