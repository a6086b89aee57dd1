"""Engines: run one batch of uint8 images on one device, synchronously.

`eager` runs the module as it is, `inductor` compiles it with torch.compile, `tensorrt` runs an engine that TensorRT
built, `openvino` one of OpenVINO's. `auto` takes the best the machine has and says why in `reason`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from model.checkpoint import Checkpoint
from model.engines import openvino_engine, tensorrt_engine
from model.engines.classifier import DTYPES, classifier_of
from model.engines.device import pick_device
from model.engines.engine import KINDS, Engine, Precision
from model.engines.openvino_engine import OpenVINOEngine
from model.engines.tensorrt_engine import TensorRTEngine
from model.engines.torch_engine import TorchEngine
from model.errors import EngineError

log = logging.getLogger(__name__)


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
