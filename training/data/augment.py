"""Augmentation of whole batches on their device, at the native size.

Enlarging is linear and comes after it, so mixing 32×32 pictures is mixing the enlarged ones at a fraction of the work.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn

from model.images.preprocess import Preprocess
from training.config import TrainConfig
from training.data.images import Targets

CROP_BORDER = 4


class Augmentation(nn.Module):
    """uint8 pixels and class ids → float pixels in 0..255 and targets, as the recipe says.

    In this order: crop and flip, random erasing (Zhong et al., AAAI 2020), Mixup (Zhang et al., ICLR 2018) or CutMix
    (Yun et al., ICCV 2019); the last three are timm's.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: TrainConfig, preprocess: Preprocess, num_classes: int, device: torch.device) -> None:
        super().__init__()
        self.moves = config.augment
        self.eraser = (
            RandomErasing(config.random_erasing, mode="pixel", device=str(device)) if config.random_erasing else None
        )
        self.mixup = (
            Mixup(
                mixup_alpha=config.mixup,
                cutmix_alpha=config.cutmix,
                prob=config.mix_prob,
                switch_prob=config.cutmix_share,
                label_smoothing=0.0,  # the objective smooths
                num_classes=num_classes,
            )
            if config.mixes
            else None
        )
        for name, values in (("mean", preprocess.mean), ("std", preprocess.std)):
            buffer = 255 * torch.tensor(values, device=device)[:, None, None]
            self.register_buffer(name, buffer, persistent=False)

    def forward(
        self, pixels: UInt8[Tensor, "batch 3 side side"], labels: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch 3 side side"], Targets]:
        """One random version of the batch; an even number of images where they mix."""
        if self.moves:
            pixels = random_flip(random_crop(pixels, CROP_BORDER))
        images = pixels.float()
        if self.eraser is not None:
            # its noise has unit variance and zero mean, so it works on standardised pixels
            images = self.eraser((images - self.mean) / self.std) * self.std + self.mean
        if self.mixup is None:
            return images, labels
        mixed: tuple[Tensor, Tensor] = self.mixup(images, labels)
        return mixed


def seed_everything(number: int) -> None:
    """Seeds torch, and the generators of Python and NumPy that timm draws from."""
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002 - timm draws from the global generator


def random_crop(pixels: UInt8[Tensor, "batch 3 side side"], border: int) -> UInt8[Tensor, "batch 3 side side"]:
    """Each image shifted by up to `border` pixels both ways, its border reflected."""
    batch, _, side, _ = pixels.shape
    offset = torch.randint(0, 2 * border + 1, (2, batch, 1), device=pixels.device)
    beyond = torch.arange(-border, side + border, device=pixels.device)
    reflected = (side - 1) - ((side - 1) - beyond.abs()).abs()
    window = torch.arange(side, device=pixels.device)
    rows, columns = reflected[offset[0] + window], reflected[offset[1] + window]
    # one gather over flat positions: seven times as fast on a CPU as padding and indexing by four axes
    place = (rows[:, :, None] * side + columns[:, None, :]).flatten(1)[:, None].expand(-1, 3, -1)
    return pixels.flatten(2).gather(2, place).view_as(pixels)


def random_flip(pixels: UInt8[Tensor, "batch 3 side side"]) -> UInt8[Tensor, "batch 3 side side"]:
    """Each image mirrored left to right with probability one half."""
    mirrored = torch.rand(len(pixels), device=pixels.device) < 0.5
    return torch.where(mirrored[:, None, None, None], pixels.flip(3), pixels)
