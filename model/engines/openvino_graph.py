"""The `openvino` engine from a checkpoint: the exported graph as one OpenVINO model for any batch, in fp32 or bf16.

openvino is an extra and is imported by the functions that need it.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from model.checkpoint import Checkpoint
from model.engines import artifact, openvino_engine
from model.engines.classifier import classifier_of
from model.engines.engine import MAX_BATCH_SIZE, Precision
from model.engines.openvino_engine import OpenVINOEngine
from model.engines.program import exported
from model.errors import EngineError

log = logging.getLogger(__name__)


def graph(checkpoint: Checkpoint, largest: int = MAX_BATCH_SIZE) -> Any:
    """The checkpoint's whole graph as a float32 `openvino.Model` for 1..largest images; raises `EngineError`.

    Makes the checkpoint's model float32.
    """
    openvino = openvino_engine.require()
    classifier = classifier_of(checkpoint, "fp32")
    side = classifier.input_stage.native_size
    try:
        converted = openvino.convert_model(exported(classifier, largest))
        converted.reshape([-1, 3, side, side])
    except Exception as error:  # torch and OpenVINO raise many types; callers need one
        raise EngineError(f"openvino: {checkpoint.manifest.name} could not be converted: {error}") from error
    return converted


def build(checkpoint: Checkpoint, precision: Precision = "fp32", largest: int = MAX_BATCH_SIZE) -> bytes:
    """The compiled model for 1..largest images as plain bytes; takes seconds. Raises `EngineError`.

    `precision` is fp32 or bf16; makes the checkpoint's model float32.
    """
    converted = graph(checkpoint, largest)
    try:
        return openvino_engine.compiled(converted, precision)
    except Exception as error:  # OpenVINO raises many types; callers need one
        raise EngineError(f"openvino: {checkpoint.manifest.name} could not be compiled: {error}") from error


def create(
    checkpoint: Checkpoint,
    precision: Precision,
    max_batch_size: int,
    folder: Path | None,
    threads: int,
    reason: str = "",
) -> OpenVINOEngine:
    """The engine that lies in the folder, or one that is built now and kept there; raises `EngineError`."""
    origin = artifact.origin_of(checkpoint, precision, torch.device("cpu"), "openvino")
    return openvino_engine.find_or_build(
        origin,
        lambda largest: build(checkpoint, precision, largest),
        checkpoint.manifest.preprocess.native_size,
        max_batch_size,
        folder,
        threads,
        reason,
    )
