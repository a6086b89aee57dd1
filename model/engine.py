"""Engines: run one batch of uint8 images on one device, synchronously.

`eager` runs the module as it is, `inductor` compiles it with torch.compile. `auto` takes the best the
machine has and says why in `reason`.
"""

from __future__ import annotations

import logging
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from model.checkpoint import Checkpoint
from model.errors import EngineError
from model.preprocess import InputStage
from model.vit import FreqMergeOutput, FreqMergeViT

log = logging.getLogger(__name__)

KINDS = ("eager", "inductor")


class EngineOutput(NamedTuple):
    """Host arrays of one batch."""

    logits: Float[np.ndarray, "batch classes"]
    frequency_score: Float[np.ndarray, "batch patches"]
    source_maps: Int[np.ndarray, "batch merging_blocks patches"]
    """Owner of every patch after each merging block."""

    @property
    def source_map(self) -> Int[np.ndarray, "batch patches"]:
        """Owner of every patch at the end."""
        return self.source_maps[:, -1]


@runtime_checkable
class Engine(Protocol):
    """Runs one batch on one device; not thread-safe: one caller at a time."""

    @property
    def kind(self) -> str:
        """'eager' or 'inductor'."""
        ...

    @property
    def device(self) -> str:
        """Such as 'cpu' or 'cuda:0'."""
        ...

    @property
    def reason(self) -> str:
        """Why `auto` took this kind; empty if the kind was asked for."""
        ...

    @property
    def max_batch_size(self) -> int:
        """Most images of one batch."""
        ...

    @property
    def native_size(self) -> int:
        """Side of the input images in pixels."""
        ...

    def warm_up(self) -> None:
        """Compiles and touches everything that the first requests would otherwise wait for."""
        ...

    def run(self, images: UInt8[np.ndarray, "batch 3 native native"]) -> EngineOutput:
        """The answer for 1..max_batch_size images; raises `EngineError`."""
        ...


class Classifier(nn.Module):
    """The whole graph: uint8 at the native size in, logits, score and source maps out."""

    def __init__(self, model: FreqMergeViT, input_stage: InputStage) -> None:
        super().__init__()
        self.input_stage = input_stage
        self.model = model

    def forward(self, images: UInt8[Tensor, "batch 3 native native"]) -> FreqMergeOutput:
        """Answer of the model for raw images."""
        output: FreqMergeOutput = self.model(self.input_stage(images))
        return output


class TorchEngine:
    """Engine that runs a `Classifier` through torch, eagerly or compiled."""

    def __init__(
        self, classifier: Classifier, kind: str, device: torch.device, max_batch_size: int, reason: str = ""
    ) -> None:
        self.kind = kind
        self.device = str(device)
        self.reason = reason
        self.max_batch_size = max_batch_size
        self.native_size = classifier.input_stage.native_size
        self._device = device
        module = classifier.to(device).eval()
        self._sizes = _bucket_sizes(max_batch_size) if kind == "inductor" else ()
        self._call = torch.compile(module, fullgraph=True, dynamic=False) if kind == "inductor" else module

    def warm_up(self) -> None:
        """Runs every batch size that is compiled for, or the smallest and largest one if none is."""
        for size in self._sizes or (1, self.max_batch_size):
            self.run(np.zeros((size, 3, self.native_size, self.native_size), np.uint8))

    def run(self, images: UInt8[np.ndarray, "batch 3 native native"]) -> EngineOutput:
        """The answer for 1..max_batch_size images; raises `EngineError`."""
        self._check(images)
        count = len(images)
        padded = self._padded(torch.from_numpy(images))
        try:
            with torch.inference_mode():
                output = self._call(padded.to(self._device, non_blocking=True))
                answers = [part[:count].cpu().numpy() for part in output[:3]]
        except Exception as error:  # torch raises many types; callers need one
            raise EngineError(f"{self.kind} engine on {self.device} failed on {count} images: {error}") from error
        return EngineOutput(
            answers[0].astype(np.float32, copy=False), answers[1], answers[2].astype(np.int64, copy=False)
        )

    def _padded(self, images: Tensor) -> Tensor:
        # a compiled graph exists for these sizes only, so that serving never compiles
        size = next((size for size in self._sizes if size >= len(images)), len(images))
        return (
            torch.cat([images, images.new_zeros(size - len(images), *images.shape[1:])])
            if size > len(images)
            else images
        )

    def _check(self, images: np.ndarray) -> None:
        side = self.native_size
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (3, side, side):
            raise EngineError(
                f"expected uint8 images [batch, 3, {side}, {side}], found {images.dtype} {list(images.shape)}"
            )
        if not 1 <= len(images) <= self.max_batch_size:
            raise EngineError(f"expected 1..{self.max_batch_size} images, found {len(images)}; split the batch")


def create_engine(
    checkpoint: Checkpoint,
    kind: str = "auto",
    device: str = "auto",
    max_batch_size: int = 32,
    threads: int | None = None,
) -> Engine:
    """An engine for the checkpoint; `kind` auto, eager or inductor, `device` auto, cpu, cuda or cuda:N.

    `threads` sets torch's CPU threads for the whole process. `auto` compiles on CUDA and falls back to
    eager when compiling fails, on a CPU it stays eager; `reason` tells. Raises `EngineError` for an unknown
    kind or a device that is not there.
    """
    if kind != "auto" and kind not in KINDS:
        raise EngineError(f"engine: expected one of auto, {', '.join(KINDS)}, found {kind!r}")
    if threads is not None:
        torch.set_num_threads(threads)
    place = pick_device(device)
    classifier = Classifier(
        checkpoint.model, InputStage(checkpoint.manifest.preprocess, checkpoint.model.config.image_size)
    )
    if kind != "auto":
        return TorchEngine(classifier, kind, place, max_batch_size)
    return _best(classifier, place, max_batch_size)


def _best(classifier: Classifier, device: torch.device, max_batch_size: int) -> Engine:
    if device.type == "cpu":
        reason = "eager: on a CPU compiling takes minutes and gains little"
        return TorchEngine(classifier, "eager", device, max_batch_size, reason)
    compiled = TorchEngine(classifier, "inductor", device, max_batch_size, "inductor: a CUDA device is present")
    try:
        compiled.warm_up()
    except EngineError as error:
        log.warning("inductor is not usable here, serving eager: %s", error)
        return TorchEngine(classifier, "eager", device, max_batch_size, f"eager: inductor failed ({error})")
    return compiled


def pick_device(name: str) -> torch.device:
    """The device named auto, cpu, cuda or cuda:N; auto is the first CUDA device, else the CPU. Raises `EngineError`."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise EngineError(f"device: expected auto, cpu, cuda or cuda:N, found {name!r}") from error
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise EngineError(f"device: expected a CUDA device below {count}, found {name!r}; use device cpu or auto")
        return torch.device("cuda", device.index or 0)
    if device.type != "cpu":
        raise EngineError(f"device: expected auto, cpu, cuda or cuda:N, found {name!r}")
    return device


def _bucket_sizes(max_batch_size: int) -> tuple[int, ...]:
    """Powers of two up to the largest batch, and that one."""
    powers = [1 << k for k in range(max_batch_size.bit_length()) if 1 << k < max_batch_size]
    return (*powers, max_batch_size)
