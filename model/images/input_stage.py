"""The first stage of every engine: uint8 images at the native size are enlarged and normalised."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from model.images.preprocess import Filter, Preprocess
from model.precision import in_full


@lru_cache(maxsize=32)
def enlargement(native_size: int, image_size: int, interpolation: Filter) -> Float[Tensor, "image_size native_size"]:
    """Matrix R with R @ column = torch's interpolation of that column; float32.

    Interpolation is separable and linear, so R X Rᵀ enlarges a channel X; two matrix products convert to
    every engine, and equal the training filter because this is the training filter.
    """
    columns = torch.eye(native_size)[None, :, :, None]
    return F.interpolate(columns, size=(image_size, 1), mode=interpolation, align_corners=False, antialias=False)[
        0, :, :, 0
    ].T.contiguous()


class InputStage(nn.Module):
    """uint8 images at the native size → normalised float images at the backbone's size."""

    resize: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, preprocess: Preprocess, image_size: int) -> None:
        super().__init__()
        self.native_size = preprocess.native_size
        self.image_size = image_size
        matrix = enlargement(preprocess.native_size, image_size, preprocess.interpolation)
        mean, std = torch.tensor(preprocess.mean), torch.tensor(preprocess.std)
        self.register_buffer("resize", matrix, persistent=False)
        self.register_buffer("scale", (1 / (255 * std))[:, None, None], persistent=False)
        self.register_buffer("shift", (-mean / std)[:, None, None], persistent=False)

    def forward(self, images: UInt8[Tensor, "batch 3 native native"]) -> Float[Tensor, "batch 3 size size"]:
        """Float images in the type of the stage's buffers."""
        return self.normalise(images.to(self.scale.dtype))

    def normalise(self, images: Float[Tensor, "batch 3 native native"]) -> Float[Tensor, "batch 3 size size"]:
        """The same for images that already are float, still in 0..255."""
        x = images * self.scale + self.shift
        if self.native_size == self.image_size:
            return x
        with in_full(x.device.type):  # autocast would round the pixels of training, and not those of serving
            return self.resize @ x @ self.resize.T
