"""A tiny data set of one's own: three classes of mixed pictures, in one folder each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog", "owl pellet")
COLOURS = ((200, 40, 40), (40, 200, 40), (40, 40, 200))
KINDS = (
    ("jpg", "RGB", (70, 50)),
    ("png", "RGBA", (40, 64)),
    ("gif", "P", (33, 33)),
    ("webp", "RGB", (48, 96)),
    ("jpeg", "L", (64, 64)),
    ("png", "LA", (20, 30)),
    ("jpg", "CMYK", (60, 61)),
    ("png", "I;16", (40, 40)),
    ("jpg", "RGB", (2000, 1400)),
)
"""Suffix, mode and size; the last is a photo large enough to be decoded smaller."""


def write(folder: Path, per_class: int) -> Path:
    """Writes `folder/CLASS/NUMBER.SUFFIX`, each class in its colour with noise, and returns the folder."""
    random = np.random.default_rng(0)
    for name, colour in zip(CLASSES, COLOURS, strict=True):
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            suffix, mode, size = KINDS[number % len(KINDS)]
            picture(colour, mode, size, random).save(folder / name / f"{number}.{suffix}", exif=turned(number))
    return folder


def picture(colour: tuple[int, int, int], mode: str, size: tuple[int, int], random: np.random.Generator) -> Image.Image:
    """A noisy picture of one colour."""
    width, height = size
    pixels = (random.integers(0, 50, (height, width, 3)) + colour).clip(0, 255).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257)
    return Image.fromarray(pixels).convert(mode)


def turned(number: int) -> Image.Exif:
    """Some pictures lie on their side."""
    exif = Image.Exif()
    exif[0x0112] = (1, 6, 3)[number % 3]
    return exif
