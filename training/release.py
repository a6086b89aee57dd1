"""`python -m training.release`: score a trained checkpoint on the test set and write the one that ships.

Merging needs no training, so a plainly trained checkpoint is released with the merging config given here, its
scores measured with and without merging. Its confidence is calibrated on training images that were held out, which also
say from which probability on an answer counts as certain.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from model import ModelConfig, files, load_checkpoint, save_checkpoint
from model.checkpoint import Checkpoint
from model.config import Frozen
from model.engines.classifier import Classifier
from model.engines.device import pick_device
from model.images.input_stage import InputStage
from model.manifest import Manifest
from training import cli
from training.data import dataset, held_out
from training.data.dataset import Source
from training.data.images import Images
from training.measure.calibration import fit_certainty, fit_temperature, fold_temperature
from training.measure.scores import BINS, answers, calibration_error, scores
from training.measure.stems import Sharing, Stems

KEPT = ("backbone", "backbone_args", "num_classes", "image_size")
FEWEST = 100
"""Held-out images that one temperature needs."""
STEM_BYTES = 6 * 2**30
"""Memory for the tokens that the scores with and without merging share."""


class ReleaseConfig(Frozen):
    """Which checkpoint is released, as what, and scored on which data."""

    ckpt: Path = Field(Path("checkpoints/best_model.safetensors"), description="trained checkpoint")
    out: Path = Field(description="safetensors file to write; its manifest goes beside it as .json")
    name: str = Field(description="name of the released model")
    data_dir: Path | None = Field(None, description=f"{dataset.DESCRIPTION}; none downloads CIFAR-100")
    half: bool = Field(False, description="store float16 weights")
    calibrate: bool = Field(
        True,
        description="divide the logits by the temperature that fits the held-out training images best, and say from "
        "which probability on an answer is certain",
    )
    made_from: dict[str, Any] = Field(
        default_factory=dict,
        description="what the first weights were and under which licences, such as package=NAME-1.0 licences=MIT; "
        "the manifest keeps it",
    )
    batch_size: int = Field(500, ge=1, description="images per evaluation step")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    threads: int = Field(0, ge=0, description="CPU threads of torch; 0 leaves torch's choice")


def release(config: ReleaseConfig, changes: dict[str, Any], command: str) -> Manifest:
    """Writes the released checkpoint and its manifest, and returns the manifest with the measured scores."""
    if config.threads:
        torch.set_num_threads(config.threads)
    merged = load_checkpoint(config.ckpt, **changes)
    source = dataset.source(config.data_dir)
    images = dataset.test_images(source, merged.manifest, config.ckpt)
    plain = load_checkpoint(config.ckpt, keep_rate=1.0)
    calibration = _calibration(merged, config, source)
    for checkpoint in (merged, plain):
        fold_temperature(checkpoint.model, calibration["temperature"])
        if config.half:  # score the weights that ship, rounded as they will be
            checkpoint.model.half().float()
    stems = Stems(STEM_BYTES)
    measured_scores = {
        f"{prefix}{name}": value
        for checkpoint, prefix in ((merged, ""), (plain, "plain_"))
        for name, value in _scores(checkpoint, images, config, calibration["temperature"], stems).items()
    }
    manifest = save_checkpoint(
        config.out,
        merged.model,
        name=config.name,
        preprocess=merged.manifest.preprocess,
        class_names=merged.manifest.class_names,
        superclasses=merged.manifest.superclasses,
        scores=measured_scores,
        training={
            **merged.manifest.training,
            **({"made_from": config.made_from} if config.made_from else {}),
            "test_images": len(images),
            "calibration": calibration,
            "released_by": command,
        },
        certain_from=calibration.get("certainty", {}).get("certain_from"),
        dtype=torch.float16 if config.half else torch.float32,
    )
    manifest_json = json.dumps(manifest.model_dump(mode="json"), indent=1)
    files.write_text(config.out.with_suffix(".json"), manifest_json + "\n")
    return manifest


def _calibration(checkpoint: Checkpoint, config: ReleaseConfig, source: Source) -> dict[str, Any]:
    """The temperature of the model as it is released, and what it was fitted on; 1 where nothing was held out."""
    if not config.calibrate:
        return {"temperature": 1.0, "why": "not asked for"}
    native_size = checkpoint.manifest.preprocess.native_size
    images = held_out.unseen(checkpoint.manifest.training, partial(source.load, "train", native_size))
    if images is None or len(images) < FEWEST:
        count = 0 if images is None else len(images)
        return {"temperature": 1.0, "why": f"{count} training images are known to be held out, {FEWEST} are needed"}
    logits = _answers(checkpoint, images, config, Stems(0))
    temperature = fit_temperature(logits, images.labels)
    before, after = scores(logits, images.labels), scores(logits / temperature, images.labels)
    return {
        "temperature": temperature,
        "folded_into": "head",
        "images": len(images),
        "loss": [before.loss, after.loss],
        "calibration_error": [before.calibration_error, after.calibration_error],
        "bins": BINS,
        "certainty": fit_certainty(logits / temperature, images.labels)._asdict(),
    }


def _scores(
    checkpoint: Checkpoint, images: Images, config: ReleaseConfig, temperature: float, stems: Stems
) -> dict[str, float]:
    """Scores of a model whose logits are already divided by the temperature."""
    logits = _answers(checkpoint, images, config, stems)
    accuracy = scores(logits, images.labels)
    return {
        "top1": accuracy.top1,
        "top5": accuracy.top5,
        "loss": accuracy.loss,
        "calibration_error": accuracy.calibration_error,
        "uncalibrated_error": calibration_error(logits * temperature, images.labels),
    }


def _answers(checkpoint: Checkpoint, images: Images, config: ReleaseConfig, stems: Stems) -> Tensor:
    device = pick_device(config.device)
    stage = InputStage(checkpoint.manifest.preprocess, checkpoint.model.config.image_size)
    classifier = Classifier(checkpoint.model, stage).to(device)
    return answers(Sharing(classifier, stems), images, config.batch_size, device)


def report(manifest: Manifest) -> str:
    """The scores as text for people: with the merging of the release, and without any."""
    figures = manifest.scores
    lines = [
        f"{label:<16}top-1 {figures[f'{prefix}top1']:.2%}, top-5 {figures[f'{prefix}top5']:.2%}, "
        f"NLL {figures[f'{prefix}loss']:.4f} nats, calibration error {figures[f'{prefix}calibration_error']:.2%} "
        f"({figures[f'{prefix}uncalibrated_error']:.2%} uncalibrated)"
        for label, prefix in (("as released", ""), ("without merging", "plain_"))
    ]
    calibration = manifest.training["calibration"]
    source = f"{calibration['images']:,} held-out training images" if "images" in calibration else calibration["why"]
    lines.append(f"{'temperature':<16}{calibration['temperature']:.3f} ({source})")
    if certainty := calibration.get("certainty"):
        lines.append(f"{'certain from':<16}{certainty['certain_from']:.4f} ({_worth(certainty)})")
    return "\n".join(lines)


def _worth(certainty: dict[str, float | None]) -> str:
    """What the threshold is worth on the images that it was chosen on."""
    parts = ((certainty["right_of_certain"], "of them"), (certainty["right_of_others"], "of the others"))
    right = " and ".join(f"{share:.1%} {which}" for share, which in parts if share is not None)
    return f"{certainty['certain']:.1%} of these images; right are {right}"


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
