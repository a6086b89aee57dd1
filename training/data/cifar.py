"""CIFAR-100 in memory: Parquet in, uint8 tensors out."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from model.labels import CLASS_NAMES, SUPERCLASSES
from training.data.images import Classes, Images
from training.errors import DataError

HUB_NAME = "uoft-cs/cifar100"
COLUMNS = ("img", "fine_label")


@dataclass(frozen=True)
class Cifar:
    """CIFAR-100 in `data_dir`, or from the hub where that is None."""

    data_dir: Path | None
    name: ClassVar[str] = "CIFAR-100"
    origin: ClassVar[str] = HUB_NAME
    own: ClassVar[bool] = False
    classes: ClassVar[Classes] = Classes(CLASS_NAMES, SUPERCLASSES)

    def load(self, split: str, side: int) -> Images:
        """Images of a split, see `load`."""
        return load(self.data_dir, split, side)


def load(data_dir: Path | None, split: str, side: int) -> Images:
    """Images of a split ('train' or 'test'), decoded once.

    Reads `data_dir/<split>-*.parquet` in the layout of the Hugging Face hub, or downloads it where
    `data_dir` is None. Raises `DataError` for a missing folder or file, a missing column, an image that
    does not decode or has another size, or labels outside 0..99.
    """
    table = _downloaded(split) if data_dir is None else _read(data_dir, split)
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise DataError(
            f"{data_dir or HUB_NAME} ({split}): expected the columns {', '.join(COLUMNS)}, found "
            f"{', '.join(table.column_names)}; export the data set in the layout of {HUB_NAME}"
        )
    labels = torch.tensor(table["fine_label"].to_pylist(), dtype=torch.long)
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= len(CLASS_NAMES):
        found = f"{int(labels.min())}..{int(labels.max())}" if len(labels) else "no rows"
        raise DataError(
            f"{data_dir or HUB_NAME} ({split}): expected fine labels 0..{len(CLASS_NAMES) - 1}, found {found}"
        )
    with ThreadPoolExecutor(4) as pool:  # Pillow decodes outside the interpreter lock
        decoded = list(pool.map(lambda row: _decode(row, side), enumerate(table["img"].to_pylist())))
    return Images(torch.from_numpy(np.stack(decoded)), labels)


def _read(data_dir: Path, split: str) -> pa.Table:
    if not data_dir.is_dir():
        raise DataError(f"data_dir: expected a folder with CIFAR-100 as Parquet, found no folder at {data_dir}")
    files = sorted(data_dir.glob(f"{split}-*.parquet"))
    if not files:
        raise DataError(
            f"data_dir: expected {split}-*.parquet in {data_dir}, found none; pictures of your own lie in one folder "
            f"per class: {data_dir}/{split}/CLASS/*.jpg"
        )
    try:
        return pa.concat_tables([pq.read_table(file) for file in files])
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"data_dir: expected readable Parquet in {data_dir}, found: {error}") from error


def _downloaded(split: str) -> pa.Table:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"data_dir: none given, and downloading {HUB_NAME} needs the package datasets; install it with "
            "`pip install datasets` or name a folder with --data_dir"
        ) from error
    try:
        return datasets.load_dataset(HUB_NAME, split=split).data.table
    except Exception as error:  # the hub client raises many types, all meaning "could not download"
        raise DataError(
            f"data_dir: none given, and {HUB_NAME} could not be downloaded ({error}); use --data_dir"
        ) from error


def _decode(row: tuple[int, Any], side: int) -> np.ndarray:
    index, value = row
    try:
        with Image.open(io.BytesIO(value["bytes"])) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (TypeError, KeyError, OSError, ValueError) as error:
        raise DataError(f"row {index}: expected an encoded image in img.bytes, found: {error}") from error
    if pixels.shape[:2] != (side, side):
        raise DataError(f"row {index}: expected a {side}x{side} image, found {pixels.shape[1]}x{pixels.shape[0]}")
    return pixels.transpose(2, 0, 1)
