"""`python -m training.quantize`: a checkpoint's int8 artifact for CPUs, and what each precision costs in accuracy.

The artifact lies beside the checkpoint and says what was measured, so that a service takes int8 or bf16 unasked only
where that is known to cost next to nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from pydantic import Field
from tqdm import tqdm

from model import files
from model.checkpoint import load_checkpoint
from model.engines import openvino_engine, openvino_graph, portable, quantization
from model.engines.classifier import classifier_of
from model.engines.engine import Engine, Precision
from model.engines.portable import Accuracy
from model.engines.torch_engine import TorchEngine
from model.manifest import default_checkpoint_path
from training import cli
from training.data import dataset
from training.data.images import Images
from training.measure import paired, records

PRECISIONS: tuple[Precision, ...] = ("int8", "bf16")
CPU = torch.device("cpu")


class QuantizeConfig(records.RecordConfig):
    """Which checkpoint is quantized, calibrated and measured on what."""

    ckpt: Path | None = Field(None, description="checkpoint to quantize; none takes the one that ships")
    data_dir: Path | None = Field(None, description=f"{dataset.DESCRIPTION}; none downloads CIFAR-100")
    quantize: bool = Field(True, description="write the artifact; --no_quantize measures the one that is there")
    calibration_images: int = Field(
        quantization.CALIBRATION_IMAGES, ge=1, description="training images that the ranges of int8 are taken from"
    )
    images: int = Field(0, ge=0, description="first test images to use; 0 uses all, as every reported number must")
    batch_size: int = Field(100, ge=1, description="images per batch")
    threads: int = Field(0, ge=0, description="CPU threads; 0 leaves torch's choice")
    seed: int = Field(0, ge=0, description="draws the calibration images")


def quantize(config: QuantizeConfig, command: str) -> list[dict[str, Any]]:
    """Writes and measures what the config asks for; returns the records. Raises `EngineError`, `ArtifactError`."""
    if config.threads:
        torch.set_num_threads(config.threads)
    checkpoint = load_checkpoint(config.ckpt or default_checkpoint_path())
    manifest = checkpoint.manifest
    source = dataset.source(config.data_dir)
    folder = records.folder(config.output_dir, config.record, source)
    path = portable.path_beside(checkpoint.path)
    if config.quantize:
        chosen = dataset.drawn(source, manifest.preprocess.native_size, config.calibration_images, config.seed)
        quantization.write(
            path, checkpoint, chosen, f"{len(chosen)} training images of {source.name}, seed {config.seed}"
        )
    shipped = portable.read(path)
    portable.check_fits(path, shipped, manifest, checkpoint.model.config)
    test = dataset.test_images(source, manifest, config.ckpt)
    test = test.take(torch.arange(min(config.images, len(test)))) if config.images else test
    # quantized before: from here on the shapes of the whole run are checked against one model
    reference = _right(TorchEngine(classifier_of(checkpoint), "eager", CPU, config.batch_size), test)
    results, accuracy = [], dict(shipped.accuracy)
    for precision in PRECISIONS:
        if missing := openvino_engine.why_not("cpu", precision):
            print(f"{precision}: not measured: {missing}")
            continue
        start = time.perf_counter()
        threads = torch.get_num_threads()
        engine = (
            portable.create(path, shipped, config.batch_size, None, threads)
            if precision == shipped.precision
            else openvino_graph.create(checkpoint, precision, config.batch_size, None, threads)
        )
        own = _right(engine, test)
        accuracy[precision] = measured = _accuracy(own, reference)
        result = {
            "checkpoint": manifest.name,
            "digest": manifest.digest,
            "artifact": shipped.digest,
            "precision": precision,
            **measured.model_dump(),
            "bound": portable.MAX_LOSS,
        }
        records.add("precision", command, result, CPU, folder, same=("digest", "precision", "images", "machine"))
        print(f"{report(precision, measured)}, {time.perf_counter() - start:.0f} s", flush=True)
        results.append(result)
    files.write_text(path, shipped.replace(accuracy=accuracy).to_json() + "\n")
    return results


def _right(engine: Engine, images: Images) -> Bool[np.ndarray, " images"]:
    """Which images the engine gets right."""
    starts = range(0, len(images), engine.max_batch_size)
    parts = [
        engine.run(images.pixels[start : start + engine.max_batch_size].numpy()).logits.argmax(axis=1)
        for start in tqdm(starts, desc=f"{engine.kind} {engine.precision}", unit=" batches", leave=False)
    ]
    right: Bool[np.ndarray, " images"] = np.concatenate(parts) == images.labels.numpy()
    return right


def _accuracy(own: Bool[np.ndarray, " images"], reference: Bool[np.ndarray, " images"]) -> Accuracy:
    compared = paired.compare(own[None], reference[None])
    return Accuracy(
        images=len(own),
        top1=float(own.mean()),
        reference_top1=float(reference.mean()),
        difference=compared.difference,
        low=compared.low,
        high=compared.high,
    )


def report(precision: str, accuracy: Accuracy) -> str:
    """What a precision costs, as one line for people."""
    verdict = "taken unasked" if accuracy.difference >= -portable.MAX_LOSS else "only by name"
    return (
        f"{precision}: top-1 {accuracy.top1:.2%}, {100 * accuracy.difference:+.2f} points to float32 "
        f"({100 * accuracy.low:+.2f} to {100 * accuracy.high:+.2f}) on {accuracy.images:,} images: {verdict}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the quantization."""
    parsed = cli.parser(
        "python -m training.quantize", "Quantize a checkpoint to int8 and measure what it costs.", QuantizeConfig
    ).parse_args(arguments)
    config = QuantizeConfig(**cli.given(QuantizeConfig, parsed))
    quantize(config, cli.command("training.quantize", arguments))
    print(f"recorded: {config.results / 'precision.jsonl'}")


if __name__ == "__main__":
    cli.run(main)
