"""The jobs of the worker threads: decoding, drawing, encoding. Blocking."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.images.pictures import network_side
from service.http import forms
from service.http.body import Upload, too_large
from service.pictures.budget import ByteBudget
from service.pictures.colormaps import Colormap
from service.pictures.decoding import decode, network_input
from service.pictures.heatmap import ImageFormat, View, encode, render
from service.settings import Settings
from service.store.image_store import StoredImage


class Decoded(NamedTuple):
    """An uploaded file, taken out of its form, and uint8 [3, native, native] of it."""

    data: bytes
    pixels: NDArray[np.uint8]


class Drawing(NamedTuple):
    """How to draw a heatmap."""

    view: View
    colormap: Colormap
    opacity: float
    size: int
    format: ImageFormat
    block: int = -1
    """Position, among the merging blocks, of the one whose tokens are drawn."""


def decode_upload(upload: Upload, settings: Settings, native_size: int, budget: ByteBudget | None = None) -> Decoded:
    """What the engine needs of an upload; raises the `UploadError`s."""
    data = upload.data if upload.boundary is None else forms.single_file(upload.data, upload.boundary)
    if len(data) > settings.max_upload_bytes:
        raise too_large(settings.max_upload_bytes, f"{len(data):,}")
    keep_side = network_side(native_size)
    picture = decode(
        data, max_pixels=settings.max_pixels, max_side=settings.max_side, keep_side=keep_side, budget=budget
    )
    return Decoded(data, network_input(picture, native_size))


def draw(stored: StoredImage, grid: tuple[int, int], how: Drawing, settings: Settings, budget: ByteBudget) -> bytes:
    """A heatmap on the picture itself, at its own resolution up to `how.size`, as a file."""
    picture = decode(
        stored.data,
        max_pixels=settings.max_pixels,
        max_side=settings.max_side,
        keep_side=max(how.size, 16),
        budget=budget,
    )
    image = render(
        picture.image,
        stored.frequency_score,
        stored.source_maps[how.block],
        grid,
        view=how.view,
        colormap=how.colormap,
        opacity=how.opacity,
        size=how.size,
    )
    return encode(image, how.format)
