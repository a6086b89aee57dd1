"""`python -m training.release`: score a trained checkpoint on the test set and write the one that ships.

Merging needs no training, so a plainly trained checkpoint is released with the merging config given here, its
scores measured with and without merging.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from model import ModelConfig, files, load_checkpoint, save_checkpoint
from model.checkpoint import Checkpoint
from model.config import Frozen
from model.engines.classifier import Classifier
from model.engines.device import pick_device
from model.images.input_stage import InputStage
from model.manifest import Manifest
from training import cli
from training.data import dataset
from training.data.images import Images
from training.measure.scores import score

KEPT = ("backbone", "backbone_args", "num_classes", "image_size")


class ReleaseConfig(Frozen):
    """Which checkpoint is released, as what, and scored on which data."""

    ckpt: Path = Field(Path("checkpoints/best_model.safetensors"), description="trained checkpoint")
    out: Path = Field(description="safetensors file to write; its manifest goes beside it as .json")
    name: str = Field(description="name of the released model")
    data_dir: Path | None = Field(None, description=f"{dataset.DESCRIPTION}; none downloads CIFAR-100")
    half: bool = Field(False, description="store float16 weights")
    batch_size: int = Field(500, ge=1, description="images per evaluation step")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    threads: int = Field(0, ge=0, description="CPU threads of torch; 0 leaves torch's choice")


def release(config: ReleaseConfig, changes: dict[str, Any], command: str) -> Manifest:
    """Writes the released checkpoint and its manifest, and returns the manifest with the measured scores."""
    if config.threads:
        torch.set_num_threads(config.threads)
    merged = load_checkpoint(config.ckpt, **changes)
    images = dataset.test_images(dataset.source(config.data_dir), merged.manifest, config.ckpt)
    plain = load_checkpoint(config.ckpt, keep_rate=1.0)
    if config.half:  # score the weights that ship, rounded as they will be
        for checkpoint in (merged, plain):
            checkpoint.model.half().float()
    scores = {**_scores(merged, images, config, ""), **_scores(plain, images, config, "plain_")}
    manifest = save_checkpoint(
        config.out,
        merged.model,
        name=config.name,
        preprocess=merged.manifest.preprocess,
        class_names=merged.manifest.class_names,
        superclasses=merged.manifest.superclasses,
        scores=scores,
        training={**merged.manifest.training, "test_images": len(images), "released_by": command},
        dtype=torch.float16 if config.half else torch.float32,
    )
    told = json.dumps(manifest.model_dump(mode="json"), indent=1)
    files.write_text(config.out.with_suffix(".json"), told + "\n")
    return manifest


def _scores(checkpoint: Checkpoint, images: Images, config: ReleaseConfig, prefix: str) -> dict[str, float]:
    device = pick_device(config.device)
    stage = InputStage(checkpoint.manifest.preprocess, checkpoint.model.config.image_size)
    found = score(Classifier(checkpoint.model, stage).to(device), images, config.batch_size, device)
    return {f"{prefix}top1": found.top1, f"{prefix}top5": found.top5, f"{prefix}loss": found.loss}


def report(manifest: Manifest) -> str:
    """The scores as text for people: with the merging of the release, and without any."""
    found = manifest.scores
    return "\n".join(
        f"{label:<16}top-1 {found[f'{prefix}top1']:.2%}, top-5 {found[f'{prefix}top5']:.2%}, "
        f"NLL {found[f'{prefix}loss']:.4f} nats"
        for label, prefix in (("as released", ""), ("without merging", "plain_"))
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the release."""
    parsed = cli.parser(
        "python -m training.release",
        "Score and write the checkpoint that ships.",
        ReleaseConfig,
        ModelConfig,
        without=KEPT,
    ).parse_args(arguments)
    changes = cli.given(ModelConfig, parsed)
    command = cli.command("training.release", arguments)
    manifest = release(ReleaseConfig(**cli.given(ReleaseConfig, parsed)), changes, command)
    print(report(manifest))
    print(f"written: {parsed.out}, {parsed.out.with_suffix('.json')}")


if __name__ == "__main__":
    cli.run(main)
