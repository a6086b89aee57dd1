"""Batches of a run, in an order that its seed decides; `python -m training.loader` prints how fast it makes them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from model import ModelConfig
from model.config import Frozen
from model.engines.device import pick_device
from model.images.input_stage import InputStage
from model.images.prepare import Preprocess
from training import cli
from training.config import TrainConfig
from training.data import dataset, randaugment
from training.data.augment import Augmentation, seed_everything
from training.data.images import Images
from training.errors import DataError
from training.measure import records
from training.run import distributed

WARM_UP = 10
"""Batches made before timing."""


class Loader:
    """Training images on their device, and the batches of any epoch from any step on.

    Each process sees the whole batch of a step (uint8 at the native size: 3 KB an image), augments all of it with the
    same random numbers and trains on its own rows, so that the number of processes does not change what is trained.
    """

    def __init__(self, images: Images, config: TrainConfig, preprocess: Preprocess, device: torch.device) -> None:
        self.config, self.device = config, device
        self.batch = config.batch_size * distributed.size()
        self.steps = len(images) // self.batch
        _check_count(len(images), config.batch_size)
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


def _check_count(images: int, batch_size: int) -> None:
    processes = distributed.size()
    if images < batch_size * processes:
        together = f" in each of {processes} processes" if processes > 1 else ""
        raise DataError(
            f"batch_size: expected at most {images // processes}{together}, because there are {images} training "
            f"images, found {batch_size}"
        )


class SpeedConfig(Frozen):
    """How long the loader is timed, and where the result goes."""

    seconds: float = Field(5.0, gt=0, description="seconds of each timing")
    record: bool = Field(False, description=records.RECORD)


def speed(config: TrainConfig, model_config: ModelConfig, seconds: float) -> dict[str, Any]:
    """Images/s of the loader alone and with enlarging to `image_size`, of all processes' threads together."""
    if config.threads:
        torch.set_num_threads(config.threads)
    device = pick_device(config.device)
    preprocess = Preprocess(native_size=config.native_size, interpolation=config.interpolation)
    source = dataset.source(config.data_dir)
    loader = Loader(source.load("train", config.native_size), config, preprocess, device)
    augmentation = Augmentation(config, preprocess, len(source.classes), device)
    stage = InputStage(preprocess, model_config.image_size).to(device)
    return {
        "loader": _rate(loader, augmentation, None, seconds),
        "loader_enlarged": _rate(loader, augmentation, stage, seconds),
        "batch_size": config.batch_size,
        "image_size": model_config.image_size,
        "config": config.model_dump(mode="json", exclude={"data_dir", "output_dir"}),
    }


@torch.inference_mode()
def _rate(loader: Loader, augmentation: Augmentation, stage: InputStage | None, seconds: float) -> float:
    seed_everything(0)
    epoch, made, start = 0, 0, 0.0
    batches = loader.epoch(epoch)
    for number in range(sys.maxsize):
        batch = next(batches, None)
        if batch is None:
            epoch += 1
            batches = loader.epoch(epoch)
            continue
        pixels, _ = augmentation(batch.pixels, batch.labels)
        if stage is not None:
            stage.normalise(pixels)
        if number < WARM_UP:
            _wait(loader.device)
            start = time.perf_counter()
            continue
        made += len(batch)
        if time.perf_counter() - start > seconds:
            break
    _wait(loader.device)
    return made / (time.perf_counter() - start)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the timing: the flags are those of the training."""
    parsed = cli.parser(
        "python -m training.loader", "Time the loader of a training.", SpeedConfig, TrainConfig, ModelConfig
    ).parse_args(arguments)
    config = TrainConfig(**cli.given(TrainConfig, parsed))
    own = SpeedConfig(**cli.given(SpeedConfig, parsed))
    folder = records.folder(config.output_dir, own.record, dataset.source(config.data_dir))
    found = speed(config, ModelConfig(**cli.given(ModelConfig, parsed)), own.seconds)
    command = cli.command("training.loader", arguments)
    path = records.write("loader", command, [found], pick_device(config.device), folder)
    print(f"{found['loader']:.0f} images/s; {found['loader_enlarged']:.0f} enlarged to {found['image_size']}")
    print(f"recorded: {path}")


if __name__ == "__main__":
    cli.run(main)
