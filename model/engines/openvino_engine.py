"""The `openvino` engine: the exported graph as one OpenVINO model for any batch, on a CPU, in float32.

openvino is an extra and is imported by the functions that need it.
"""

from __future__ import annotations

import logging
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from model.checkpoint import Checkpoint
from model.engines import artifact
from model.engines.artifact import Profile
from model.engines.classifier import classifier_of
from model.engines.engine import EngineOutput, Precision, check_batch
from model.engines.program import MAX_BATCH_SIZE, exported
from model.errors import EngineError

log = logging.getLogger(__name__)


def why_not(device: torch.device, precision: Precision = "fp32") -> str | None:
    """Why OpenVINO cannot be used on this device and in this precision, or None."""
    if device.type != "cpu":
        return f"it runs on a CPU, and the device is {device}"
    if precision != "fp32":
        # the precision would be a hint, which the plugin follows or not, whichever the processor is
        return f"it computes in fp32, and the precision is {precision}"
    if find_spec("openvino") is None:
        return "the package openvino is not installed (pip install openvino)"
    return None


def build(checkpoint: Checkpoint, largest: int = MAX_BATCH_SIZE) -> bytes:
    """The compiled model for 1..largest images as plain bytes; takes seconds. Raises `EngineError`.

    Makes the checkpoint's model float32.
    """
    openvino = _require()
    classifier = classifier_of(checkpoint, "fp32")
    side = classifier.input_stage.native_size
    try:
        graph = openvino.convert_model(exported(classifier, largest))
        graph.reshape([-1, 3, side, side])
        # as bytes: the compiled model itself would read its weights from the memory of torch's
        return bytes(openvino.Core().compile_model(graph, "CPU", _options(1)).export_model().getvalue())
    except Exception as error:  # torch and OpenVINO raise many types; callers need one
        raise EngineError(f"openvino: {checkpoint.manifest.name} could not be built: {error}") from error


class OpenVINOEngine:
    """Engine that runs what `build` gave, with a pool of threads of its own, which sleep while there is no batch."""

    kind = "openvino"
    device = "cpu"
    precision: Precision = "fp32"

    def __init__(self, engine: bytes, native_size: int, max_batch_size: int, threads: int, reason: str = "") -> None:
        self.reason = reason
        self.max_batch_size = max_batch_size
        self.native_size = native_size
        openvino = _require()
        try:
            self._request = openvino.Core().import_model(engine, "CPU", _options(threads)).create_infer_request()
        except Exception as error:  # damaged bytes, too little memory: OpenVINO raises many types
            raise EngineError(f"openvino: the engine could not be loaded: {error}") from error

    def warm_up(self) -> None:
        """Runs the smallest and the largest batch."""
        for size in (1, self.max_batch_size):
            self.run(np.zeros((size, 3, self.native_size, self.native_size), np.uint8))

    def run(self, images: UInt8[np.ndarray, "batch 3 native native"]) -> EngineOutput:
        """The answer for 1..max_batch_size images; raises `EngineError`."""
        check_batch(images, self.native_size, self.max_batch_size)
        try:
            logits, scores, owners = self._request.infer([np.ascontiguousarray(images)]).values()
        except Exception as error:  # OpenVINO raises RuntimeError and its own types; callers need one
            raise EngineError(f"openvino engine on cpu failed on {len(images)} images: {error}") from error
        return EngineOutput(logits, scores, owners)


def create(
    checkpoint: Checkpoint, max_batch_size: int, folder: Path | None, threads: int, reason: str = ""
) -> OpenVINOEngine:
    """The engine that lies in the folder, or one that is built now and kept there; raises `EngineError`."""
    origin = artifact.origin_of(checkpoint, "fp32", torch.device("cpu"), "openvino")
    largest = max(MAX_BATCH_SIZE, max_batch_size)

    def fresh() -> bytes:
        log.info("building an OpenVINO engine of %s; this takes seconds", origin.checkpoint)
        return build(checkpoint, largest)

    load = partial(
        OpenVINOEngine,
        native_size=checkpoint.manifest.preprocess.native_size,
        max_batch_size=max_batch_size,
        threads=threads,
        reason=reason,
    )
    found = artifact.kept(origin, max_batch_size, folder, load)
    return found or artifact.built(origin, (Profile(best=largest, largest=largest),), folder, fresh, load)


def _options(threads: int) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": "f32",  # else bf16 where the processor has it
        "EXECUTION_MODE_HINT": "ACCURACY",
        "PERFORMANCE_HINT": "LATENCY",  # one batch at a time, on all threads
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # a pinned thread waits where another process has its core
    }


def _require() -> Any:
    """The package openvino; raises `EngineError` where it is not installed."""
    reason = why_not(torch.device("cpu"))
    if reason is not None:
        raise EngineError(f"openvino cannot be used: {reason}")
    # It reports imports and conversions to an analytics service unless this companion is missing, for which it has
    # a stub of its own. A service that asks nobody must not do that.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino
