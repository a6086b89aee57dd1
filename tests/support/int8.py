"""A tiny checkpoint with its int8 artifact beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.checkpoint import save_checkpoint
from model.images.preprocess import Preprocess
from tests.model.tiny import tiny
from tests.support import forked

EXPORT = """
import sys
from model import export
ckpt, pictures, out = sys.argv[1:]
flags = ["--engine", "openvino", "--precision", "int8"]
export.main([*flags, "--ckpt", ckpt, "--calibration", pictures, "--out", out])
"""
"""In a process of its own: the shape checks of the test run cannot be exported."""


def pictures(count: int) -> NDArray[np.uint8]:
    """Noise for the tiny model, the same for the same count."""
    return np.random.default_rng(count).integers(0, 256, (count, 3, 16, 16), dtype=np.uint8)


def export(folder: Path, seed: int = 0) -> tuple[Path, list[str]]:
    """The checkpoint's path, its artifact beside it, and what the export printed; another seed gives other weights."""
    path = folder / "tiny.safetensors"
    model = tiny()
    model.vit.head.bias.data += seed  # other weights, and so another digest
    save_checkpoint(path, model, preprocess=Preprocess(native_size=16))
    (folder / "pictures" / "deep").mkdir(parents=True)
    for number, pixels in enumerate(pictures(20)):
        picture = Image.fromarray(pixels.transpose(1, 2, 0))
        picture.save(folder / "pictures" / ("deep" if number % 2 else "") / f"{number}.png")
    (folder / "pictures" / "notes.txt").write_text("no picture")
    done = forked.run("-c", EXPORT, path, folder / "pictures", folder)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return path, done.stdout.splitlines()
