"""Augmentation of whole uint8 batches on their device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor


def random_crop(pixels: UInt8[Tensor, "batch 3 side side"], border: int) -> UInt8[Tensor, "batch 3 side side"]:
    """Each image shifted by up to `border` pixels both ways, its border reflected."""
    batch, _, side, _ = pixels.shape
    padded = F.pad(pixels.float(), (border,) * 4, mode="reflect").to(pixels.dtype)
    offset = torch.randint(0, 2 * border + 1, (2, batch, 1), device=pixels.device)
    window = torch.arange(side, device=pixels.device)
    rows, columns = (offset[0] + window)[:, None, :, None], (offset[1] + window)[:, None, None, :]
    image, channel = torch.arange(batch, device=pixels.device), torch.arange(3, device=pixels.device)
    return padded[image[:, None, None, None], channel[None, :, None, None], rows, columns]


def random_flip(pixels: UInt8[Tensor, "batch 3 side side"]) -> UInt8[Tensor, "batch 3 side side"]:
    """Each image mirrored left to right with probability one half."""
    mirrored = torch.rand(len(pixels), device=pixels.device) < 0.5
    return torch.where(mirrored[:, None, None, None], pixels.flip(3), pixels)
