"""The images of a run: CIFAR-100, or one's own pictures in one folder per class. What lies in `data_dir` decides."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8

from model.manifest import Manifest
from training.data import folders
from training.data.cifar import Cifar
from training.data.folders import Folders
from training.data.images import Classes, Images
from training.errors import DataError

DESCRIPTION = "folder with one folder of pictures per class (train/CLASS/, test/CLASS/), or with CIFAR-100 as Parquet"


@runtime_checkable
class Source(Protocol):
    """A data set whose pixels are not read yet."""

    @property
    def name(self) -> str:
        """What an error calls it."""
        ...

    @property
    def origin(self) -> str:
        """What a checkpoint says that it was trained on; no path of this machine."""
        ...

    @property
    def own(self) -> bool:
        """Whether the pictures are one's own, and not CIFAR-100."""
        ...

    @property
    def classes(self) -> Classes: ...

    def load(self, split: str, side: int) -> Images:
        """Images of a split ('train' or 'test'), decoded once; raises `DataError`."""
        ...


def source(data_dir: Path | None) -> Source:
    """The data set in `data_dir`, CIFAR-100 from the hub where that is None; raises `DataError`."""
    if data_dir is None or any(data_dir.glob("*.parquet")) or not folders.subfolders(data_dir):
        return Cifar(data_dir)
    return Folders(data_dir)


def test_images(source: Source, manifest: Manifest, ckpt: Path | None) -> Images:
    """The test images as the checkpoint sees them; raises `DataError` if its classes are others than theirs."""
    if manifest.class_names != source.classes.names:
        raise DataError(
            f"{ckpt or manifest.name}: expected a model of {source.name}'s {len(source.classes)} classes, found "
            f"{len(manifest.class_names)} classes ({', '.join(manifest.class_names[:3])}, …)"
        )
    return source.load("test", manifest.preprocess.native_size)


def drawn(source: Source, native_size: int, count: int, seed: int) -> UInt8[np.ndarray, "images 3 native native"]:
    """Up to `count` training images, drawn by the seed, such as those that calibrate a quantization."""
    images = source.load("train", native_size)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    pixels: UInt8[np.ndarray, "images 3 native native"] = images.take(order[:count]).pixels.numpy()
    return pixels
