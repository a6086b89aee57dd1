"""One's own pictures, one folder per class: `DIR/train/CLASS/` and `DIR/test/CLASS/`, or `DIR/CLASS/` alone.

Every file is decoded as the service would decode it (`model.images.pictures`), so both see the same pixels.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from model.images import pictures
from training import distributed
from training.data import memory
from training.data.images import Classes, Images
from training.errors import DataError

TEST_SHARE = 0.2
"""Share of each class that is its test set where the folder has no test set of its own."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif")


class Folders:
    """Pictures by class. Raises `DataError` for a layout that is none, and for classes that train and test differ in.

    Names that begin with a dot are passed over. A folder `val` stands in for a missing `test`.
    """

    own = True

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.name = str(data_dir)
        self.origin = data_dir.resolve().name
        splits = {name: data_dir / name for name in ("train", "test", "val") if subfolders(data_dir / name)}
        if splits and "train" not in splits:
            raise DataError(f"data_dir: expected {data_dir}/train beside {next(iter(splits.values()))}, found none")
        self.train = splits.get("train")
        """None where one level of folders holds all pictures."""
        self.test = splits.get("test", splits.get("val"))
        self.classes = Classes(_class_names(self.train or data_dir))
        if self.test is not None:
            _refuse_strangers(self.test, self.classes)

    def load(self, split: str, side: int) -> Images:
        """Pictures of a split ('train' or 'test'), reduced to `side` pixels.

        Raises `DataError` naming the file that is no picture or is damaged, the class that has none, or what would not
        fit into memory.
        """
        files = [self._files(split, name) for name in self.classes.names]
        _refuse_what_does_not_fit(sum(map(len, files)), side, memory.available())
        labels = torch.tensor([label for label, own in enumerate(files) for _ in own])
        return Images(torch.from_numpy(_pixels([file for own in files for file in own], side)), labels)

    def _files(self, split: str, name: str) -> list[Path]:
        if self.train is None:
            return _shared_out(self.data_dir / name, split)
        folder = self.train if split == "train" else self.test
        if folder is None:
            raise DataError(f"data_dir: expected {self.data_dir}/test with a folder per class, found none")
        if not (folder / name).is_dir():
            return []  # a test set may lack a class
        return _some(folder / name)


def subfolders(folder: Path) -> list[Path]:
    """The folders in `folder` by name, hidden ones left out; none where there is no such folder."""
    inside = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in inside if path.is_dir() and not path.name.startswith("."))


def read(file: Path, side: int) -> UInt8[np.ndarray, "3 side side"]:
    """The picture in the file as the network sees it, exactly as the service reads it; raises `DataError`."""
    data = file.read_bytes()
    format_name = pictures.format_of(data)
    if format_name is None:
        raise DataError(f"{file}: expected a picture ({pictures.listed()}), found another file; convert or remove it")
    try:
        return pictures.network_input(data, format_name, side)
    except (Image.DecompressionBombError, *pictures.DAMAGED) as error:
        raise DataError(
            f"{file}: expected a whole {format_name} file, found one that does not decode ({error}); "
            "restore or remove it"
        ) from error


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(path.name for path in subfolders(folder))
    if len(names) < 2:
        raise DataError(f"data_dir: expected a folder for each of at least 2 classes in {folder}, found {len(names)}")
    loose = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if loose:
        raise DataError(f"data_dir: expected every picture in the folder of its class, found {folder / loose[0]}")
    return names


def _refuse_strangers(test: Path, classes: Classes) -> None:
    strangers = [path.name for path in subfolders(test) if path.name not in classes.names]
    if strangers:
        raise DataError(
            f"data_dir: expected in {test} the classes of the training pictures alone, found also "
            f"{', '.join(strangers[:5])}; move or remove them"
        )


def _some(folder: Path) -> list[Path]:
    """All files below the folder, by name, hidden ones left out; raises `DataError` if there are none."""
    inside = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [path for path in inside if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not files:
        raise DataError(f"data_dir: expected pictures in {folder}, found none; add some or remove the folder")
    return files


def _shared_out(folder: Path, split: str) -> list[Path]:
    """The class's files of a split: the names decide, so every run and every machine divides them alike."""
    files = _some(folder)
    count = max(1, round(len(files) * TEST_SHARE))
    if count == len(files):
        raise DataError(
            f"data_dir: expected at least 2 pictures in {folder}, as one of them is for testing, found {len(files)}"
        )
    drawn = sorted(files, key=lambda path: hashlib.sha256(path.relative_to(folder).as_posix().encode()).digest())
    return sorted(drawn[:count] if split == "test" else drawn[count:])


def _refuse_what_does_not_fit(count: int, side: int, available: int | None) -> None:
    # twice, because the part that is held out is copied out of the whole
    need = 2 * count * 3 * side * side
    if available is not None and need > available:
        raise DataError(
            f"native_size: expected pixels that fit into the {available / 1e9:.1f} GB of memory that are left, found "
            f"{count:,} pictures of {side} x {side}, which take {need / 1e9:.1f} GB while they are divided; choose a "
            "smaller --native_size or use fewer pictures"
        )


def _pixels(files: Sequence[Path], side: int) -> UInt8[np.ndarray, "count 3 side side"]:
    pixels = np.empty((len(files), 3, side, side), np.uint8)

    def fill(index: int) -> None:
        pixels[index] = read(files[index], side)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes outside the interpreter lock
        done = pool.map(fill, range(len(files)))
        for _ in tqdm(done, "pictures", len(files), delay=5, disable=distributed.rank() > 0):
            pass
    return pixels
