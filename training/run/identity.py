"""What must not differ: between a run and the one that it goes on with, and between the processes of a run."""

from __future__ import annotations

import reprlib
import zlib
from typing import Any

import torch

from model import ModelConfig
from model.labels import CLASS_NAMES
from training import distributed
from training.config import TrainConfig
from training.data.images import Images
from training.errors import DataError, ResumeError

STEP = "images_per_step"
"""Name, in a state, of `batch_size` times the number of processes: each may change, their product may not."""


def refuse_other_run(saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Returns if a state with the facts `saved` may be gone on with; raises `ResumeError` otherwise."""
    # a state that is older than a setting was trained with that setting's default
    saved = {**_defaults(), **saved}
    _refuse_other_steps(saved.get(STEP, saved["batch_size"] * saved.get("processes", 1)), wanted[STEP])
    differing = [key for key in wanted if key != STEP and saved.get(key) != wanted[key]]
    if differing:
        differences = "; ".join(
            f"{key}: saved {_shown(saved.get(key))}, given {_shown(wanted[key])}" for key in differing
        )
        raise ResumeError(f"resume: expected the settings that the run started with, found others ({differences})")


def refuse_other_images(images: Images, device: torch.device) -> None:
    """Raises `DataError` in all processes unless all have read the same images in the same order."""
    if distributed.size() == 1:
        return
    checksum = zlib.crc32(images.pixels.contiguous().numpy().data)
    if not distributed.alike([len(images), zlib.crc32(images.labels.numpy().data), checksum], device):
        raise DataError(
            f"data_dir: expected the same training images in all {distributed.size()} processes, found others in at "
            f"least one (here {len(images):,} images, checksum {checksum:08x}); copy the data set again, and decode it "
            "with the same version of Pillow everywhere"
        )


def _refuse_other_steps(saved: int, wanted: int) -> None:
    if saved == wanted:
        return
    processes = distributed.size()
    here = f"{processes} processes" if processes > 1 else "1 process"
    advice = (
        f"no --batch_size does that in {here}; start as many as divide {saved}"
        if saved % processes
        else f"in {here} that is --batch_size {saved // processes}"
    )
    raise ResumeError(f"resume: expected steps of {saved} images, as the run started with, found {wanted}; {advice}")


def _shown(value: Any) -> str:
    return reprlib.repr(value) if isinstance(value, list) else repr(value)


def _defaults() -> dict[str, Any]:
    names = {"class_names": list(CLASS_NAMES)}
    return {**ModelConfig().model_dump(mode="json"), **TrainConfig().model_dump(mode="json"), **names}
