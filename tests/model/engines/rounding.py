"""How far half precision takes eager's answers from float32's: what the tolerances of model.engines.agreement stand on.

Run as a program with a folder of CIFAR-100, it prints the figures of docs/reference/engines.md, which are of the
checkpoint that ships: those of the first 96 test images, and how far the answers for two of the four pictures that are
compared at start are from each other.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from model import load_checkpoint
from model.checkpoint import read_manifest
from model.engines import agreement
from model.engines.choice import create_engine
from model.engines.engine import EngineOutput
from model.manifest import default_checkpoint_path

IMAGES = 96


class Rounding(NamedTuple):
    """Eager in half precision against eager float32, on the same images."""

    median: float
    """Relative error of the logits, each picture's mean logit taken off."""
    worst: float
    score: float
    """Mean difference of the frequency score."""


def answers(path: Path, images: np.ndarray, precision: str) -> EngineOutput:
    """What this checkpoint answers on a CPU."""
    checkpoint = load_checkpoint(path)
    return create_engine(checkpoint, "eager", "cpu", len(images), precision=precision).run(images)


def rounding(path: Path, images: np.ndarray, precision: str) -> Rounding:
    """What this precision costs on these images."""
    found, wanted = answers(path, images, precision), answers(path, images, "fp32")
    errors = np.linalg.norm(found.logits - wanted.logits, axis=1) / _scale(wanted)
    score = np.abs(found.frequency_score - wanted.frequency_score).mean()
    return Rounding(float(np.median(errors)), float(errors.max()), float(score))


def closest_of_the_four(path: Path) -> float:
    """Least relative error that the answer for another one of the four pictures has."""
    native_size = read_manifest(path).preprocess.native_size
    told = answers(path, agreement.pictures(native_size), "fp32")
    errors = np.linalg.norm(told.logits[:, None] - told.logits, axis=2) / _scale(told)
    return float(errors[~np.eye(len(errors), dtype=bool)].min())


def _scale(told: EngineOutput) -> np.ndarray:
    scale: np.ndarray = np.linalg.norm(told.logits - told.logits.mean(axis=1, keepdims=True), axis=1)
    return scale


def main(data_dir: str) -> None:
    """Prints the figures."""
    from training.data import dataset  # only the program needs the data

    path = default_checkpoint_path()
    manifest = read_manifest(path)
    images = dataset.test_images(dataset.source(Path(data_dir)), manifest, None).pixels[:IMAGES].numpy()
    for precision in ("fp16", "bf16"):
        told = rounding(path, images, precision)
        print(f"{precision}: {told.median:.2%} at the median, {told.worst:.1%} at worst, score {told.score:.4f}")
    print(f"the closest two of the four pictures: {closest_of_the_four(path):.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
