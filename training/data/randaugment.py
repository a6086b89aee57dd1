"""timm's RandAugment on the CPU, one picture at a time (Cubuk et al., "RandAugment", NeurIPS 2020).

Its operations are Pillow's, so it is the one augmentation that runs in worker processes instead of on the device.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from model.images.preprocess import Preprocess


class RandAugmented(Dataset[Tensor]):
    """Pictures by (index, seed), each changed by operations that the seed draws."""

    def __init__(self, pixels: UInt8[Tensor, "count 3 side side"], recipe: str, preprocess: Preprocess) -> None:
        self.pixels = pixels
        side = pixels.shape[-1]
        # timm's own choice of fill colour and of the longest shift
        fill = tuple(round(255 * mean) for mean in preprocess.mean)
        self.transform = rand_augment_transform(recipe, {"translate_const": int(side * 0.45), "img_mean": fill})

    def __getitem__(self, drawn: tuple[int, int]) -> UInt8[Tensor, "3 side side"]:
        index, seed = drawn
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - timm draws from the global generator
        changed = self.transform(Image.fromarray(self.pixels[index].permute(1, 2, 0).numpy()))
        return torch.from_numpy(np.array(changed)).permute(2, 0, 1).contiguous()


def batches(images: RandAugmented, drawn: Sequence[Sequence[tuple[int, int]]], workers: int) -> Iterator[Tensor]:
    """One uint8 batch for each list of (index, seed), in order, made ahead by worker processes."""
    loader = DataLoader(
        images,
        batch_sampler=drawn,  # type: ignore[arg-type]  # torch's annotation knows plain indices only
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )
    return iter(loader)
