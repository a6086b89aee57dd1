"""A checkpoint as one ONNX file for other runtimes: the exported graph, its tensors named as in `/v2`.

onnx and onnxscript are extras and are imported by the functions that need them.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from model import files
from model._version import __version__
from model.checkpoint import Checkpoint
from model.config import SCORE_NAMES
from model.engines.classifier import Classifier, classifier_of
from model.engines.engine import Precision
from model.engines.program import exported
from model.errors import EngineError

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")

OPSET = 18
"""What torch's exporter translates to before it raises the version: the oldest, so the most runtimes read it."""

INPUT = "pixels"
OUTPUTS = ("logits", "frequency_score", "energy", "source_map", "source_maps")
"""In order. All but the last are outputs of `/v2`, which has no owners after each single block."""


class _Named(nn.Module):
    """The classifier with the outputs of `OUTPUTS`."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(
        self, images: UInt8[Tensor, "batch 3 native native"]
    ) -> tuple[
        Float[Tensor, "batch classes"],
        Float[Tensor, "batch patches"],
        Float[Tensor, "batch patches"],
        Int[Tensor, "batch patches"],
        Int[Tensor, "batch merging_blocks patches"],
    ]:
        output = self.classifier(images)
        lfgm, energy = (output.frequency_scores[:, SCORE_NAMES.index(name)] for name in ("lfgm", "energy"))
        return output.logits, lfgm, energy, output.source_maps[:, -1], output.source_maps


def why_not(device: str, precision: Precision) -> str | None:
    """Why no ONNX file can be exported on this device (such as cpu or cuda:0) and in this precision, or None."""
    if device != "cpu":
        return f"it is exported on a CPU, and the device is {device}"
    if precision not in PRECISIONS:
        return f"it is written in {' or '.join(PRECISIONS)}, and the precision is {precision}"
    if missing := [package for package in ("onnx", "onnxscript") if find_spec(package) is None]:
        return f"not installed: {' and '.join(missing)} (pip install 'freqmerge[onnx]')"
    return None


def graph(checkpoint: Checkpoint, precision: Precision = "fp32") -> Any:
    """The checkpoint's whole graph as an `onnx.ModelProto` for any batch; takes half a minute. Raises `EngineError`.

    `precision` is that of the backbone; the checkpoint's model takes it. What is float32 in every engine is float32
    in the file. Its metadata holds the checkpoint's name and digest, the precision, the config and the class names.
    """
    if reason := why_not("cpu", precision):
        raise EngineError(f"onnx: {checkpoint.manifest.name} cannot be exported: {reason}")
    classifier = classifier_of(checkpoint, precision)
    try:
        program = torch.onnx.export(
            exported(classifier, form=_Named),
            dynamo=True,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            opset_version=OPSET,
            verbose=False,
        )
        proto: Any = program.model_proto  # type: ignore[union-attr]  # None only without dynamo
    except Exception as error:  # torch and onnxscript raise many types; callers need one
        raise EngineError(f"onnx: {checkpoint.manifest.name} could not be exported: {error}") from error
    _tidy(proto)
    proto.producer_name, proto.producer_version = "freqmerge", __version__
    for key, value in _identity(checkpoint, precision).items():
        proto.metadata_props.add(key=key, value=value)
    return proto


def write(folder: Path, checkpoint: Checkpoint, precision: Precision = "fp32") -> Path:
    """Writes the graph as `NAME-PRECISION.onnx`, all or nothing, and returns the path; raises `EngineError`."""
    path = folder / f"{checkpoint.manifest.name}-{precision}.onnx"
    content = graph(checkpoint, precision).SerializeToString()
    with files.replacing(path) as temporary:
        temporary.write_bytes(content)
    return path


def _tidy(proto: Any) -> None:
    """Calls the dynamic size `batch` and drops torch's notes: stack traces with paths, and shapes between the nodes."""
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del proto.graph.value_info[:], proto.graph.metadata_props[:]
    for part in (*proto.graph.input, *proto.graph.output, *proto.graph.node, *proto.graph.initializer):
        del part.metadata_props[:]


def _identity(checkpoint: Checkpoint, precision: Precision) -> dict[str, str]:
    manifest = checkpoint.manifest
    return {
        "checkpoint": manifest.name,
        "digest": manifest.digest,
        "precision": precision,
        "config": checkpoint.model.config.model_dump_json(),
        "class_names": json.dumps(manifest.class_names),
    }
