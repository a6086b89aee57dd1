"""Batches of a run, in an order that its seed decides."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from model.images.preprocess import Preprocess
from training import distributed
from training.config import TrainConfig
from training.data import randaugment
from training.data.images import Images
from training.errors import DataError


class Loader:
    """Training images on their device, and the batches of any epoch from any step on.

    Each process sees the whole batch of a step (uint8 at the native size: 3 KB an image), augments all of it with the
    same random numbers and trains on its own rows, so that the number of processes does not change what is trained.
    """

    def __init__(self, images: Images, config: TrainConfig, preprocess: Preprocess, device: torch.device) -> None:
        self.config, self.device = config, device
        self.batch = config.batch_size * distributed.size()
        taken = len(images) if config.epoch_images is None else config.epoch_images
        self.steps = taken // self.batch
        _check_count(len(images), config)
        self.pictures = (
            randaugment.RandAugmented(images.pixels, config.rand_augment, preprocess) if config.rand_augment else None
        )
        self.images = images.to(device)

    def __len__(self) -> int:
        return len(self.images)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Images]:
        """The batches of an epoch (from 0), from step `first` on."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(self.config.seed * 100_003 + epoch))
        chosen = [order[at * self.batch : (at + 1) * self.batch] for at in range(first, self.steps)]
        if self.pictures is None:
            order = order.to(self.device)
            for at in range(first, self.steps):
                yield self.images.take(order[at * self.batch : (at + 1) * self.batch])
        else:
            yield from self._changed(self.pictures, chosen, epoch)

    def _changed(self, pictures: randaugment.RandAugmented, chosen: list[Tensor], epoch: int) -> Iterator[Images]:
        """Each process changes its own rows; the changed ones are then put together."""
        start = (self.config.seed * 100_003 + epoch) * 1_000_003
        drawn = [
            [(index, (start + index) % 2**32) for index in rows[distributed.own_rows(len(rows))].tolist()]
            for rows in chosen
        ]
        for rows, part in zip(chosen, randaugment.batches(pictures, drawn, self.config.workers), strict=True):
            pixels = distributed.together(part.to(self.device, non_blocking=True))
            yield Images(pixels, self.images.labels[rows.to(self.device)])


def _check_count(images: int, config: TrainConfig) -> None:
    processes, taken = distributed.size(), config.epoch_images
    if taken is not None and taken > images:
        raise DataError(f"epoch_images: expected at most the {images} training images, found {taken}")
    taken = images if taken is None else taken
    if taken < config.batch_size * processes:
        together = f" in each of {processes} processes" if processes > 1 else ""
        cause = f"there are {images} training images" if config.epoch_images is None else f"epoch_images is {taken}"
        raise DataError(
            f"batch_size: expected at most {taken // processes}{together}, because {cause}, found {config.batch_size}"
        )
