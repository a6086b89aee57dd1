"""`python -m training.parity`: how far the answers of every engine and precision are from eager float32."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field, field_validator

from model.checkpoint import load_checkpoint
from model.engines.choice import create_engine
from model.engines.classifier import DTYPES
from model.engines.device import pick_device
from model.engines.engine import KINDS
from model.manifest import default_checkpoint_path
from training import cli
from training.data import dataset
from training.data.images import Images
from training.measure import records

GOAL = 0.995
"""Least share of test images on which an engine should name the class that eager float32 names."""


class ParityConfig(records.RecordConfig):
    """Which checkpoint, which engines, and where the record goes."""

    ckpt: Path | None = Field(None, description="checkpoint to measure; none takes the one that ships")
    data_dir: Path | None = Field(None, description=f"{dataset.DESCRIPTION}; none downloads CIFAR-100")
    engines: tuple[str, ...] = Field(
        ("eager:bf16", "inductor:fp32", "inductor:bf16"), min_length=1, description="engines, each as kind:precision"
    )
    keep_rate: float | None = Field(
        None, ge=0.5, le=1, description="instead of the checkpoint's, for engine and reference; 1 merges nothing"
    )
    images: int = Field(0, ge=0, description="first test images to use; 0 uses all, as every reported number must")
    batch_size: int = Field(250, ge=1, description="images per batch")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    threads: int = Field(0, ge=0, description="CPU threads of torch; 0 leaves torch's choice")
    engine_cache: Path | None = Field(None, description="folder of TensorRT engines; none keeps none")

    @property
    def changes(self) -> dict[str, float]:
        """Fields of the model config that are replaced."""
        return {} if self.keep_rate is None else {"keep_rate": self.keep_rate}

    @field_validator("engines")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            kind, _, precision = name.partition(":")
            if kind not in KINDS or precision not in DTYPES:
                raise ValueError(f"expected one of {', '.join(KINDS)}, a colon, and one of {', '.join(DTYPES)}")
        return names


class Answers(NamedTuple):
    """What one engine says about all images."""

    logits: Float[np.ndarray, "images classes"]
    frequency_scores: Float[np.ndarray, "images scores patches"]
    source_map: Int[np.ndarray, "images patches"]


class Parity(NamedTuple):
    """How far one engine's answers are from the reference's."""

    agreement: float
    """Share of images with the same first class."""
    score_max_difference: float
    """Largest difference of a frequency score, which lies in 0..1."""
    logits_max_difference: float
    same_source_map: float
    """Share of images whose tokens merged in the same way."""


def compare(answers: Answers, reference: Answers) -> Parity:
    """Agreement with a reference on the same images."""
    return Parity(
        float((answers.logits.argmax(axis=1) == reference.logits.argmax(axis=1)).mean()),
        float(np.abs(answers.frequency_scores - reference.frequency_scores).max()),
        float(np.abs(answers.logits - reference.logits).max()),
        float((answers.source_map == reference.source_map).all(axis=1).mean()),
    )


def answers(config: ParityConfig, name: str, images: Images) -> tuple[Answers, str]:
    """Answers of the engine `kind:precision`, and the kind that really ran; raises `EngineError`."""
    kind, _, precision = name.partition(":")
    checkpoint = load_checkpoint(config.ckpt or default_checkpoint_path(), **config.changes)
    engine = create_engine(
        checkpoint,
        kind,
        config.device,
        max_batch_size=config.batch_size,
        precision=precision,
        cache=config.engine_cache,
    )
    starts = range(0, len(images), config.batch_size)
    parts = [engine.run(images.pixels[start : start + config.batch_size].numpy()) for start in starts]
    return Answers(*(np.concatenate(column) for column in zip(*parts, strict=True))), engine.kind


def parity(config: ParityConfig, command: str) -> list[dict[str, Any]]:
    """Measures and records every engine of the config against eager float32, and returns the records."""
    if config.threads:
        torch.set_num_threads(config.threads)
    checkpoint = load_checkpoint(config.ckpt or default_checkpoint_path(), **config.changes)
    manifest = checkpoint.manifest
    source = dataset.source(config.data_dir)
    folder = records.folder(config.output_dir, config.record, source)
    images = dataset.test_images(source, manifest, config.ckpt)
    images = images.take(torch.arange(min(config.images, len(images)))) if config.images else images
    reference, _ = answers(config, "eager:fp32", images)
    labels = images.labels.numpy()
    results = []
    for name in config.engines:
        start = time.perf_counter()
        own, ran = answers(config, name, images)
        result = {
            "checkpoint": manifest.name,
            "digest": manifest.digest,
            "keep_rate": checkpoint.model.config.keep_rate,
            "images": len(images),
            "engine": name,
            "ran": ran,
            **compare(own, reference)._asdict(),
            "top1": float((own.logits.argmax(axis=1) == labels).mean()),
            "reference_top1": float((reference.logits.argmax(axis=1) == labels).mean()),
            "goal": GOAL,
        }
        device = pick_device(config.device)
        same = ("digest", "keep_rate", "engine", "images", "machine")
        records.add("parity", command, result, device, folder, same=same)
        print(f"{report(result)}, {time.perf_counter() - start:.0f} s", flush=True)
        results.append(result)
    return results


def report(result: dict[str, Any]) -> str:
    """The record as one line for people."""
    verdict = "reached" if result["agreement"] >= result["goal"] else "missed"
    return (
        f"{result['engine']:<14} agrees on {result['agreement']:.2%} ({verdict}: {result['goal']:.1%}), "
        f"score within {result['score_max_difference']:.1e}, logits within {result['logits_max_difference']:.1e}, "
        f"same merges on {result['same_source_map']:.2%}, top-1 {result['top1']:.2%}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the parity measurement."""
    parsed = cli.parser(
        "python -m training.parity", "Compare every engine with eager float32 on the test images.", ParityConfig
    ).parse_args(arguments)
    config = ParityConfig(**cli.given(ParityConfig, parsed))
    parity(config, cli.command("training.parity", arguments))
    print(f"recorded: {config.results / 'parity.jsonl'}")


if __name__ == "__main__":
    cli.run(main)
