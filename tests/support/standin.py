"""A small stand-in for CIFAR-100: the same Parquet layout, 100 classes that a tiny model can learn."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from model.labels import CLASS_NAMES, MEMBERS, SUPERCLASSES


def write(folder: Path, train_per_class: int = 4, test_per_class: int = 1, side: int = 32) -> Path:
    """Writes train and test files (two each) and returns the folder.

    A class is a colour on the left half and another on the right, plus noise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for split, per_class in (("train", train_per_class), ("test", test_per_class)):
        labels = random.permutation(np.repeat(np.arange(len(CLASS_NAMES)), per_class))
        for part, chosen in enumerate(np.array_split(labels, 2)):
            table = pa.table(
                {
                    "img": [{"bytes": _png(int(label), side, random), "path": None} for label in chosen],
                    "fine_label": pa.array(chosen, pa.int64()),
                    "coarse_label": [list(MEMBERS).index(SUPERCLASSES[label]) for label in chosen],
                }
            )
            pq.write_table(table, folder / f"{split}-{part:05d}-of-00002.parquet")
    return folder


def _png(label: int, side: int, random: np.random.Generator) -> bytes:
    pixels = random.integers(0, 40, (side, side, 3))
    pixels[:, : side // 2, 0] += 21 * (label % 10)
    pixels[:, side // 2 :, 1] += 21 * (label // 10)
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
