"""`python -m training.runtimes`: what merging and a smaller precision give together on this CPU, in one run.

OpenVINO runs the plain model and the merging one in every precision that the processor has; ONNX Runtime runs the same
graphs in float32 and in its own int8. All take turns, and what counts is the median of the ratios to plain float32 in
OpenVINO. How often each names the first class of float32 says whether it still computes the same.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from pydantic import Field, PositiveInt

from model.checkpoint import Checkpoint, load_checkpoint, read_manifest
from model.engines import onnx_graph, openvino_engine, openvino_graph, portable, quantization
from model.engines.engine import Engine, Precision
from model.engines.portable import Portable
from model.errors import ArtifactError
from model.manifest import default_checkpoint_path
from model.processor import fast_int8
from model.speed import rate, ratio, seconds
from training import cli
from training.data import dataset
from training.measure import records
from training.studies.runtimes import FIRST, NAME, Runner, page

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8")
Pixels = UInt8[np.ndarray, "images 3 native native"]
Call = Callable[[Pixels], Float[np.ndarray, "images classes"]]
"""Runs a batch; what comes back of it are the logits."""

COMPARED = 100
"""Of the calibration images, how many answers are compared."""


class RuntimesConfig(records.RecordConfig):
    """Which checkpoint is run, how often, and with which calibration images."""

    ckpt: Path | None = Field(None, description="checkpoint to run; none takes the one that ships")
    data_dir: Path | None = Field(None, description=f"{dataset.DESCRIPTION}; none downloads CIFAR-100")
    calibration_images: int = Field(
        quantization.CALIBRATION_IMAGES, ge=1, description="training images that the ranges of int8 are taken from"
    )
    batch_sizes: tuple[PositiveInt, ...] = Field((1, 8, 32), min_length=1, description="images per batch")
    repeats: int = Field(15, ge=3, description="timed batches per engine and batch size")
    warm_up: int = Field(2, ge=1, description="batches before timing")
    threads: int = Field(0, ge=0, description="CPU threads; 0 leaves torch's choice")
    peers: bool = Field(True, description="run ONNX Runtime too; it takes the extra `onnx` and the package onnxruntime")
    seed: int = Field(0, ge=0, description="draws the calibration images")


def measure(config: RuntimesConfig) -> list[dict[str, Any]]:
    """One result per engine and batch size; raises `EngineError`."""
    if config.threads:
        torch.set_num_threads(config.threads)
    path = config.ckpt or default_checkpoint_path()
    manifest = read_manifest(path)
    source = dataset.source(config.data_dir)
    images = dataset.drawn(source, manifest.preprocess.native_size, config.calibration_images, config.seed)
    with tempfile.TemporaryDirectory() as folder:
        calls = dict(_engines(config, path, images, Path(folder)))
        compared = images[:COMPARED]
        agreement = _agreement(calls, compared, max(config.batch_sizes))
        return [
            {"checkpoint": manifest.name, "digest": manifest.digest, **row, "compared": len(compared)}
            for size in config.batch_sizes
            for row in _timed(config, calls, agreement, images[np.arange(size) % len(images)])
        ]


def _engines(config: RuntimesConfig, path: Path, images: Pixels, folder: Path) -> Iterator[tuple[Runner, Call]]:
    """Everything that can run here; says what cannot, and why."""
    threads, largest = torch.get_num_threads(), max(config.batch_sizes)
    for name, changes in (("plain", {"keep_rate": 1.0}), ("FreqMerge", {})):
        own = folder / name
        own.mkdir()
        for precision in PRECISIONS:
            if missing := openvino_engine.why_not("cpu", precision):
                print(f"OpenVINO, {precision}: not run: {missing}")
                continue
            checkpoint = load_checkpoint(path, **changes)
            if precision == "int8":
                engine = portable.create(*_artifact(checkpoint, own, images), largest, None, threads)
            else:
                engine = openvino_graph.create(checkpoint, precision, largest, None, threads)
            yield Runner("OpenVINO", name, precision), _logits(engine)
        if config.peers:
            written = onnx_graph.write(own, load_checkpoint(path, **changes))
            yield Runner("ONNX Runtime", name, "fp32"), _onnx(written, threads)
            yield Runner("ONNX Runtime", name, "int8"), _onnx(_quantized(written, images), threads)


def _artifact(checkpoint: Checkpoint, folder: Path, images: Pixels) -> tuple[Path, Portable]:
    """The artifact beside the checkpoint, where it is of this config, else a new one in the folder."""
    beside = portable.path_beside(checkpoint.path)
    try:
        shipped = portable.read(beside)
        portable.check_fits(beside, shipped, checkpoint.manifest, checkpoint.model.config)
    except ArtifactError:
        path = folder / beside.name
        return path, quantization.write(path, checkpoint, images, f"{len(images)} training images")
    return beside, shipped


def _logits(engine: Engine) -> Call:
    return lambda images: engine.run(images).logits


def _onnx(path: Path, threads: int) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")  # its threads would run on in the next turn
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    at = onnx_graph.OUTPUTS.index("logits")
    return lambda images: session.run(None, {onnx_graph.INPUT: images})[at]


class _Reader:
    """Calibration images one by one, as ONNX Runtime asks for them."""

    def __init__(self, images: Pixels) -> None:
        self._left = iter(images)

    def get_next(self) -> dict[str, Pixels] | None:
        image = next(self._left, None)
        return None if image is None else {onnx_graph.INPUT: image[None]}


def _quantized(path: Path, images: Pixels) -> Path:
    """The file in ONNX Runtime's own int8: the products with weights, the head left out, as in our artifact.

    With 7 bits for the weights where the processor has no instructions for 8-bit products: there, as ONNX Runtime's
    documents say, the sums of two such products would saturate.
    """
    import onnx
    from onnxruntime import quantization as own

    graph = onnx.load(path).graph
    weights = {weight.name for weight in graph.initializer}
    linear = [node.name for node in graph.node if node.op_type in ("MatMul", "Gemm") and node.input[1] in weights]
    out = path.with_suffix(".int8.onnx")
    own.quantize_static(
        path,
        out,
        _Reader(images),
        quant_format=own.QuantFormat.QDQ,
        activation_type=own.QuantType.QUInt8,
        weight_type=own.QuantType.QInt8,
        per_channel=True,
        reduce_range=not fast_int8(),
        nodes_to_quantize=linear[:-1],
    )
    return out


def _agreement(calls: Mapping[Runner, Call], images: Pixels, largest: int) -> dict[Runner, float]:
    """How often each runner names the first class of its model in OpenVINO's float32, as a share of these images."""
    parts = np.array_split(images, math.ceil(len(images) / largest))
    named = {runner: np.concatenate([call(part).argmax(axis=1) for part in parts]) for runner, call in calls.items()}
    wanted = {model: named[FIRST._replace(model=model)] for model in dict.fromkeys(runner.model for runner in calls)}
    return {runner: float(np.mean(classes == wanted[runner.model])) for runner, classes in named.items()}


def _timed(
    config: RuntimesConfig, calls: Mapping[Runner, Call], agreement: Mapping[Runner, float], images: Pixels
) -> Iterator[dict[str, Any]]:
    cpu = torch.device("cpu")
    times = seconds(
        {runner: _bound(call, images) for runner, call in calls.items()}, config.repeats, config.warm_up, cpu
    )
    for runner, own in times.items():
        throughput = rate(own, times[FIRST], len(images))
        yield {
            **runner._asdict(),
            "batch_size": len(images),
            "images_per_s": throughput.images_per_s,
            "images_per_s_quartiles": list(throughput.quartiles),
            "speed_up": throughput.speed_up,
            "gain": ratio(times[runner._replace(model="plain")], own),
            "repeats": config.repeats,
            "agreement": agreement[runner],
        }


def _bound(call: Call, images: Pixels) -> Callable[[], Any]:
    return lambda: call(images)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the comparison."""
    parsed = cli.parser(
        "python -m training.runtimes",
        "Time plain and merging models in every precision of this CPU, beside ONNX Runtime.",
        RuntimesConfig,
    ).parse_args(arguments)
    config = RuntimesConfig(**cli.given(RuntimesConfig, parsed))
    results = measure(config)
    source = dataset.source(config.data_dir)
    folder = records.folder(config.output_dir, config.record, source)
    path = records.write_for_machine(
        NAME, cli.command("training.runtimes", arguments), results, torch.device("cpu"), folder
    )
    print(page(records.read(NAME, path.parent)))
    print(f"recorded: {path}")


if __name__ == "__main__":
    cli.run(main)
