"""`python -m model.export`: builds an engine ahead of time, into a folder that the service takes as its cache.

`--engine onnx` writes the model for other runtimes instead.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from model.checkpoint import Checkpoint, load_checkpoint
from model.engines import artifact, onnx_graph, openvino_engine, openvino_graph, portable, quantization, tensorrt_engine
from model.engines.artifact import Kind, Profile
from model.engines.device import pick_device
from model.engines.engine import MAX_BATCH_SIZE, Precision
from model.errors import EngineError, FreqMergeError
from model.manifest import default_checkpoint_path

SERVED_BATCH = 32
"""Largest batch of a service that is not told another one."""


def export(arguments: argparse.Namespace) -> tuple[Path, ...]:
    """Builds and writes what the command line asks for; returns the paths. Raises `FreqMergeError`."""
    kind, on_cpu = arguments.engine, arguments.engine in ("openvino", "onnx")
    device = pick_device("cpu" if on_cpu and arguments.device == "auto" else arguments.device)
    precision: Precision = arguments.precision or ("fp32" if on_cpu else "fp16")
    if precision == "int8" and not on_cpu:
        raise EngineError("precision: expected fp16, bf16 or fp32 with tensorrt, found int8; take --engine openvino")
    if (reason := _why_not(kind, device, precision)) is not None:  # said before anything is loaded
        raise EngineError(f"{kind}: expected a machine that can build an engine; {reason}")
    changes = {
        name: getattr(arguments, name) for name in ("keep_rate", "alpha") if getattr(arguments, name) is not None
    }
    checkpoint = load_checkpoint(arguments.ckpt or default_checkpoint_path(), **changes)
    if kind == "onnx":
        return (onnx_graph.write(arguments.out, checkpoint, precision),)
    if precision == "int8":
        return _portable(checkpoint, arguments)
    return _engine(checkpoint, kind, device, precision, arguments)


def _why_not(kind: str, device: torch.device, precision: Precision) -> str | None:
    """Why this cannot be built here, or None."""
    if kind == "onnx":
        return onnx_graph.why_not(str(device), precision)
    if kind == "openvino":
        return openvino_engine.why_not(str(device), precision)
    return tensorrt_engine.why_not(device)


def _engine(
    checkpoint: Checkpoint, kind: Kind, device: torch.device, precision: Precision, arguments: argparse.Namespace
) -> tuple[Path, ...]:
    """An engine and its manifest, as the service keeps them in its cache."""
    if kind == "openvino":
        largest = arguments.max_batch or MAX_BATCH_SIZE
        profiles: tuple[Profile, ...] = (Profile(best=largest, largest=largest),)
        engine = openvino_graph.build(checkpoint, precision, largest)
    else:
        profiles = tensorrt_engine.profiles(arguments.max_batch or SERVED_BATCH)
        engine = tensorrt_engine.build(checkpoint, precision, device, profiles)
    origin = artifact.origin_of(checkpoint, precision, device, kind)
    path = artifact.write(arguments.out, origin, profiles, engine)
    artifact.failure_path(path).unlink(missing_ok=True)  # of the service, which may now load what it could not build
    return path, path.with_suffix(".json")


def _portable(checkpoint: Checkpoint, arguments: argparse.Namespace) -> tuple[Path, ...]:
    """The int8 artifact that any CPU compiles, calibrated on the pictures of a folder."""
    if arguments.calibration is None:
        raise EngineError(
            "calibration: expected a folder of training pictures, found none; int8 is calibrated on some hundred of "
            "them: give --calibration DIR"
        )
    images = quantization.pictures(arguments.calibration, checkpoint.manifest.preprocess.native_size)
    path = arguments.out / portable.path_beside(checkpoint.path).name
    quantization.write(path, checkpoint, images, source=f"{len(images)} pictures of {arguments.calibration.name}")
    return path, path.with_suffix(".xml"), path.with_suffix(".bin")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = argparse.ArgumentParser(prog="python -m model.export", description=__doc__, allow_abbrev=False)
    flags.add_argument("--engine", choices=["tensorrt", "openvino", "onnx"], required=True, help="what to build")
    flags.add_argument(
        "--precision", choices=["fp16", "bf16", "fp32", "int8"], help="default: fp16; openvino and onnx: fp32"
    )
    flags.add_argument(
        "--calibration",
        type=Path,
        help="int8: folder of pictures, searched through all its folders; some hundred of the training set",
    )
    flags.add_argument("--ckpt", type=Path, help="checkpoint; unset: the one that ships with the package")
    flags.add_argument("--out", type=Path, required=True, help="folder; the service's FREQMERGE_ENGINE_CACHE")
    flags.add_argument(
        "--max_batch",
        type=_batch,
        help="largest batch; TensorRT tunes for 1, 8 and it: FREQMERGE_MAX_BATCH_SIZE (default: 32; openvino: 256); "
        "an onnx file takes any",
    )
    flags.add_argument("--keep_rate", type=float, help="share of patch tokens kept, instead of the checkpoint's")
    flags.add_argument("--alpha", type=float, help="frequency penalty weight, instead of the checkpoint's")
    flags.add_argument("--device", default="auto", help="cuda or cuda:N: TensorRT's engine is for that GPU")
    return flags


def _batch(text: str) -> int:
    size = int(text)
    if size < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1 image, found {text}")
    return size


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; an error becomes one line on standard error and exit code 2."""
    parsed = parser().parse_args(arguments)
    try:
        paths = export(parsed)
    except (FreqMergeError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    sys.stdout.writelines(f"{path}\n" for path in paths)


if __name__ == "__main__":
    main()
