"""Quantization of a checkpoint to int8, and the portable artifact that it is written into.

openvino and nncf are extras and are imported by the functions that need them.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from contextlib import redirect_stdout
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from model.checkpoint import Checkpoint, versions
from model.engines import agreement, openvino_engine, openvino_graph, portable
from model.engines.classifier import classifier_of
from model.engines.engine import EngineOutput, check_batch
from model.engines.portable import Portable
from model.engines.torch_engine import TorchEngine
from model.errors import EngineError
from model.images.pictures import DAMAGED, format_of, network_input

LINEAR = "linear"
"""How OpenVINO's converter begins the name of a product that was a linear layer."""


CALIBRATION_IMAGES = 300
"""What `pictures` takes of a folder; ten times as many make the ranges no better."""


def why_not_quantize() -> str | None:
    """Why no model can be quantized here, or None."""
    if find_spec("nncf") is None:
        return "the package nncf is not installed (pip install 'freqmerge[int8]')"
    return openvino_engine.why_not("cpu")


def quantized(graph: Any, images: UInt8[np.ndarray, "images 3 native native"]) -> Any:
    """The graph with its linear layers in int8, their ranges calibrated on these images; raises `EngineError`.

    Post-training quantization (Jacob et al., 2018) by NNCF: weights symmetric per output channel, inputs asymmetric,
    with its correction of the biases. All else stays float32: the patch embedding, attention's own products,
    the score, the similarity, the log of the token sizes, the merging and the head, which gives the logits.
    """
    if reason := why_not_quantize():
        raise EngineError(f"int8: expected a machine that can quantize; {reason}")
    if not len(images):
        raise EngineError("int8: expected calibration images, found none; give some hundred of the training set")
    check_batch(images[:1], images.shape[-1], 1)
    openvino_engine.require()  # before nncf, which would import it with its reports
    import nncf

    products = [node for node in graph.get_ordered_ops() if node.get_type_name() in ("MatMul", "Convolution")]
    linear = [node.get_friendly_name() for node in products if node.get_friendly_name().startswith(LINEAR)]
    if len(linear) < 2:
        raise EngineError(f"int8: expected linear layers and a head in the graph, found {len(linear)} linear layers")
    quantizable = set(linear[:-1])  # the last is the head
    ignored_names = [node.get_friendly_name() for node in products if node.get_friendly_name() not in quantizable]
    others = {node.get_type_name() for node in graph.get_ops()}
    _normalise_last(graph)
    logging.getLogger("nncf").setLevel(logging.WARNING)
    try:
        with redirect_stdout(sys.stderr):  # where NNCF draws its progress
            return nncf.quantize(
                graph,
                nncf.Dataset([images[at : at + 1] for at in range(len(images))]),
                model_type=nncf.ModelType.TRANSFORMER,
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(images),
                ignored_scope=nncf.IgnoredScope(
                    names=ignored_names,
                    types=sorted(others - {"MatMul", "Convolution", "Constant", "Parameter", "Result"}),
                    validate=False,
                ),
            )
    except Exception as error:  # NNCF raises many types; callers need one
        raise EngineError(f"int8: the graph could not be quantized: {error}") from error


def _normalise_last(graph: Any) -> None:
    """Moves scale and shift of the pixels behind their enlargement, which is linear and keeps constants as they are.

    OpenVINO 2026.4 takes a product right behind the input for the end of a quantization, pulls it through the
    enlargement's reshapes and breaks them there.
    """
    from openvino import opset13 as operators

    [pixels] = graph.get_parameters()
    [converted] = _users(pixels, "Convert")
    [scaled] = _users(converted, "Multiply")
    [shifted] = _users(scaled, "Add")
    [embedding] = [node for node in graph.get_ordered_ops() if node.get_type_name() == "Convolution"]
    enlarged = embedding.input_value(0)
    if enlarged.get_node().get_friendly_name() == shifted.get_friendly_name():
        return  # nothing is enlarged
    for port in shifted.output(0).get_target_inputs():
        port.replace_source_output(converted.output(0))
    normalised = operators.add(operators.multiply(enlarged, scaled.input_value(1)), shifted.input_value(1))
    embedding.input(0).replace_source_output(normalised.output(0))
    graph.validate_nodes_and_infer_types()


def _users(node: Any, kind: str) -> list[Any]:
    """The nodes of this type that take what the node gives."""
    ports = node.output(0).get_target_inputs()
    return [port.get_node() for port in ports if port.get_node().get_type_name() == kind]


def pictures(
    folder: Path, native_size: int, count: int = CALIBRATION_IMAGES
) -> UInt8[np.ndarray, "images 3 side side"]:
    """Up to `count` pictures of a folder and of the folders in it, drawn by one seed.

    Files that are no picture are passed over. Raises `EngineError` where there is none.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    images: list[np.ndarray] = []
    for place in np.random.default_rng(0).permutation(len(files)):
        data = files[place].read_bytes()
        if (kind := format_of(data)) is None:
            continue
        try:
            images.append(network_input(data, kind, native_size))
        except DAMAGED:
            continue
        if len(images) == count:
            break
    if not images:
        raise EngineError(
            f"calibration: expected a folder of pictures, found none among {len(files)} files of {folder}; name the "
            "folder of the training pictures"
        )
    return np.stack(images)


def write(
    path: Path, checkpoint: Checkpoint, images: UInt8[np.ndarray, "images 3 native native"], source: str
) -> Portable:
    """Quantizes the checkpoint and writes its portable artifact at `path` (of the JSON); raises `EngineError`.

    `source` says what the calibration images are of. Makes the checkpoint's model float32.
    """
    graph = quantized(openvino_graph.graph(checkpoint), images)
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "graph.xml"
        openvino_engine.require().save_model(graph, saved, compress_to_fp16=False)
        parts = saved.read_bytes(), saved.with_suffix(".bin").read_bytes()
    model, manifest = checkpoint.model, checkpoint.manifest
    return portable.write(
        path,
        {
            "checkpoint": manifest,
            "config": model.config,
            "schedule": tuple(model.schedule),
            "grid": model.grid,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "calibration": {"images": len(images), "source": source},
            "reference": portable.packed(_reference(checkpoint)),
            "versions": {**versions(), "openvino": version("openvino"), "nncf": version("nncf")},
        },
        *parts,
    )


def _reference(checkpoint: Checkpoint) -> EngineOutput:
    """What eager float32 answers to the pictures of `agreement`."""
    shown = agreement.pictures(checkpoint.manifest.preprocess.native_size)
    return TorchEngine(classifier_of(checkpoint), "eager", torch.device("cpu"), len(shown)).run(shown)
