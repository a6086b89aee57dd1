"""Engines: run one batch of uint8 images on one device, synchronously.

`eager` runs the module as it is, `inductor` compiles it with torch.compile, `tensorrt` runs an engine that TensorRT
built, `openvino` one of OpenVINO's. `auto` takes the best the machine has and says why in `reason`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8

from model.checkpoint import Checkpoint
from model.engines import openvino_engine, tensorrt_engine
from model.engines.batch import EngineOutput
from model.engines.classifier import DTYPES, Classifier, Precision, classifier_of
from model.engines.openvino_engine import OpenVINOEngine
from model.engines.tensorrt_engine import TensorRTEngine
from model.engines.torch_engine import TorchEngine
from model.errors import EngineError

__all__ = ["KINDS", "Classifier", "Engine", "EngineOutput", "create_engine", "pick_device"]

log = logging.getLogger(__name__)

KINDS = ("eager", "inductor", "openvino", "tensorrt")


@runtime_checkable
class Engine(Protocol):
    """Runs one batch on one device; not thread-safe: one caller at a time."""

    @property
    def kind(self) -> str:
        """'eager', 'inductor', 'openvino' or 'tensorrt'."""
        ...

    @property
    def device(self) -> str:
        """Such as 'cpu' or 'cuda:0'."""
        ...

    @property
    def precision(self) -> Precision:
        """Numbers of the backbone."""
        ...

    @property
    def reason(self) -> str:
        """Why this kind was taken; empty if it is what was asked for."""
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


def create_engine(
    checkpoint: Checkpoint,
    kind: str = "auto",
    device: str = "auto",
    max_batch_size: int = 32,
    threads: int | None = None,
    precision: str = "auto",
    cache: Path | None = None,
) -> Engine:
    """An engine for the checkpoint; `kind` auto or one of `KINDS`, `device` auto, cpu, cuda or cuda:N.

    `threads` sets torch's CPU threads for the whole process, and OpenVINO takes as many. `precision` is auto, fp32,
    fp16 or bf16; auto is fp16 on CUDA and fp32 on a CPU. `cache` is where TensorRT's and OpenVINO's engines are kept;
    the first take minutes to build, the others seconds. On CUDA `auto` tries tensorrt, then inductor, then eager, and
    `tensorrt` falls back to inductor. On a CPU `auto` and `openvino` try openvino, then eager, and `tensorrt` is eager.
    `reason` tells. The engine changes the checkpoint's model. Raises `EngineError` for an unknown kind or precision, a
    device that is not there, or openvino on CUDA.
    """
    _check_names(kind, precision)
    if threads is not None:
        torch.set_num_threads(threads)
    place = pick_device(device)
    exact = _precision(precision, place)
    native_size = checkpoint.manifest.preprocess.native_size

    def make(taken: str, reason: str) -> Engine:
        if taken == "tensorrt":
            engine = tensorrt_engine.cached(checkpoint, exact, place, max_batch_size, cache)
            return TensorRTEngine(engine, native_size, exact, place, max_batch_size, reason)
        if taken == "openvino":
            engine = openvino_engine.cached(checkpoint, max_batch_size, cache)
            return OpenVINOEngine(engine, native_size, max_batch_size, torch.get_num_threads(), reason)
        return TorchEngine(classifier_of(checkpoint, exact), taken, place, max_batch_size, reason)

    if place.type == "cpu":
        return _on_cpu(kind, place, exact, make)
    if kind == "openvino":
        raise EngineError(f"engine: openvino cannot be used: {openvino_engine.why_not(place)}; take device cpu or auto")
    if kind in ("eager", "inductor"):
        return make(kind, "")
    return first_usable(
        ("tensorrt", "inductor") if kind == "tensorrt" else ("tensorrt", "inductor", "eager"), kind, make
    )


def first_usable(kinds: Sequence[str], wanted: str, make: Callable[[str, str], Engine]) -> Engine:
    """The first of these kinds that can be made and warmed up; the last one is made without trying it.

    `make` takes a kind and the reason for it. Why a kind was passed over is logged, and stands in that reason.
    """
    failed: list[str] = []
    *tried, last = kinds
    for taken, following in zip(tried, kinds[1:], strict=True):
        try:
            engine = make(taken, _reason(taken, wanted, failed))
            engine.warm_up()
        except EngineError as error:
            log.warning("%s; trying %s instead", error, following)
            failed.append(str(error))
        else:
            return engine
    return make(last, _reason(last, wanted, failed))


def _on_cpu(kind: str, place: torch.device, precision: Precision, make: Callable[[str, str], Engine]) -> Engine:
    """The engine that runs on a CPU where this kind is asked for."""
    if kind == "inductor":
        log.info("inductor compiles the model for the CPU, which takes minutes; the engine eager starts at once")
    if kind in ("eager", "inductor"):
        return make(kind, "")
    if kind == "tensorrt":
        reason = f"tensorrt cannot be used: {tensorrt_engine.why_not(place)}"
    elif missing := openvino_engine.why_not(place, precision):
        reason = f"openvino cannot be used: {missing}"
    else:
        return first_usable(("openvino", "eager"), kind, make)
    if kind != "auto":
        log.warning("%s; eager takes its place", reason)
    return make("eager", f"eager: {reason}")


def _reason(taken: str, wanted: str, failed: list[str]) -> str:
    if failed:
        return f"{taken}: {'; '.join(failed)}"
    return "" if taken == wanted else f"{taken}: the best that this device and these packages have"


def _check_names(kind: str, precision: str) -> None:
    if kind != "auto" and kind not in KINDS:
        raise EngineError(f"engine: expected one of auto, {', '.join(KINDS)}, found {kind!r}")
    if precision != "auto" and precision not in DTYPES:
        raise EngineError(f"precision: expected one of auto, {', '.join(DTYPES)}, found {precision!r}")


def _precision(name: str, device: torch.device) -> Precision:
    exact: dict[str, Precision] = {"fp32": "fp32", "fp16": "fp16", "bf16": "bf16"}
    return exact.get(name, "fp16" if device.type == "cuda" else "fp32")


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
        if not count:
            raise EngineError(f"device: expected cpu or auto, as this torch sees no CUDA device, found {name!r}")
        if (device.index or 0) >= count:
            raise EngineError(f"device: expected a CUDA device below {count}, found {name!r}; use device cpu or auto")
        return torch.device("cuda", device.index or 0)
    if device.type != "cpu":
        raise EngineError(f"device: expected auto, cpu, cuda or cuda:N, found {name!r}")
    return device
