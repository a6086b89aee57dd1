"""`python -m training.loader`: how fast the batches of a training are made."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field

from model import ModelConfig
from model.config import Frozen
from model.engines.device import pick_device
from model.images.input_stage import InputStage
from model.images.preprocess import Preprocess
from training import cli
from training.config import TrainConfig
from training.data import dataset
from training.data.augment import Augmentation, seed_everything
from training.data.loader import Loader
from training.measure import records

WARM_UP = 10
"""Batches made before timing."""


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
    result = speed(config, ModelConfig(**cli.given(ModelConfig, parsed)), own.seconds)
    command = cli.command("training.loader", arguments)
    path = records.write("loader", command, [result], pick_device(config.device), folder)
    print(f"{result['loader']:.0f} images/s; {result['loader_enlarged']:.0f} enlarged to {result['image_size']}")
    print(f"recorded: {path}")


if __name__ == "__main__":
    cli.run(main)
