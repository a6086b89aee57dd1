"""The images of a run: CIFAR-100, or one's own pictures in one folder per class. What lies in `data_dir` decides."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

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
    def classes(self) -> Classes: ...

    def load(self, split: str, side: int) -> Images:
        """Images of a split ('train' or 'test'), decoded once; raises `DataError`."""
        ...


def source(data_dir: Path | None) -> Source:
    """The data set in `data_dir`, CIFAR-100 from the hub where that is None; raises `DataError`."""
    if data_dir is None or any(data_dir.glob("*.parquet")) or not folders.subfolders(data_dir):
        return Cifar(data_dir)
    return Folders(data_dir)


def is_own(data_dir: Path | None) -> bool:
    """Whether the pictures are one's own, and not CIFAR-100."""
    return isinstance(source(data_dir), Folders)


def load(data_dir: Path | None, split: str, side: int) -> Images:
    """Images of a split ('train' or 'test') of the data set in `data_dir`; raises `DataError`."""
    return source(data_dir).load(split, side)


def test_images(data_dir: Path | None, manifest: Manifest, ckpt: Path | None) -> Images:
    """The test images as the checkpoint sees them; raises `DataError` if its classes are others than theirs."""
    there = source(data_dir)
    if manifest.class_names != there.classes.names:
        raise DataError(
            f"{ckpt or manifest.name}: expected a model of {there.name}'s {len(there.classes)} classes, found "
            f"{len(manifest.class_names)} classes ({', '.join(manifest.class_names[:3])}, …)"
        )
    return there.load("test", manifest.preprocess.native_size)
