"""How a picture is prepared for the model on the host; training and serving share this file.

A model trained on small pictures blown up (CIFAR-100: 32 → 224) must see photos the same way: the
centred square is first reduced to the native size, antialiased, on the host; enlarging and
normalising are linear and happen inside the engine (`model.images.input_stage`), so a request ships native-size uint8.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from model.errors import ImageError


def center_square(width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the largest centred square, in whole pixels."""
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def prepare_image(image: Image.Image, native_size: int) -> UInt8[np.ndarray, "3 size size"]:
    """The centred square of an RGB picture, reduced with antialiasing (or enlarged) to the native size.

    Raises `ImageError` for a picture of another mode.
    """
    if image.mode != "RGB":
        raise ImageError(f"expected an RGB picture, found mode {image.mode}; convert it first")
    # cropped first: resize(box=…) would let the filter read beyond the square
    square = image.crop(center_square(*image.size))
    if square.size != (native_size, native_size):
        square = square.resize((native_size, native_size), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(square, dtype=np.uint8).transpose(2, 0, 1))
