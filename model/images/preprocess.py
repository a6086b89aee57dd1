"""What a checkpoint says of how its pictures were prepared.

Apart from `model.images.prepare`, which does it: the processes that decode pictures need no pydantic.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from model.config import Frozen

CIFAR100_MEAN = (0.5071, 0.4865, 0.4409)
CIFAR100_STD = (0.2673, 0.2564, 0.2762)
"""Channel statistics of the 50,000 training images, in shares of 255."""

Filter = Literal["bicubic", "bilinear"]


class Preprocess(Frozen):
    """Native size, enlargement filter and normalisation that a checkpoint was trained with."""

    native_size: int = Field(32, ge=4, description="side of the uint8 image given to the engine, in pixels")
    interpolation: Filter = Field("bicubic", description="filter that enlarges the native size to the image size")
    mean: tuple[float, float, float] = Field(CIFAR100_MEAN, description="channel means, shares of 255")
    std: tuple[float, float, float] = Field(CIFAR100_STD, description="channel standard deviations, shares of 255")
