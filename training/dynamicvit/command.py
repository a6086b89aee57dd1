"""`python -m training.dynamicvit`: train DynamicViT from a trained checkpoint, resumably, and measure it.

Rao et al., NeurIPS 2021. The checkpoint is both the start and the frozen teacher, as in the paper. A finished run
started again with --resume is measured again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, PositiveInt
from torch import nn

from model.checkpoint import read_manifest
from model.config import Frozen
from model.engines.device import pick_device
from model.images.input_stage import InputStage
from model.macs import count_macs, count_parameters
from model.speed import rates
from training import cli, distributed
from training.config import TrainConfig
from training.data import dataset
from training.dynamicvit import files
from training.dynamicvit.loss import LossWeights
from training.dynamicvit.model import DynamicConfig, DynamicViT
from training.dynamicvit.task import DynamicRecipe, task
from training.evaluate import report
from training.measure import records
from training.measure.scores import BINS, score
from training.run import state
from training.studies.reports import duration
from training.train import run

MODULE = "training.dynamicvit"
UNUSED = (
    *("freqmerge", "init", "patch_drop", "layer_decay", "pretrained", "native_size", "interpolation"),
    *("teacher", "distill", "distill_weight", "temperature"),
)
"""Fields of the training config that the starting checkpoint or the paper decides."""


class MeasureConfig(Frozen):
    """What is measured at the end, and where the result goes."""

    record: bool = Field(False, description=records.RECORD)
    benchmark: bool = Field(False, description="measure images/s beside the plain ViT")
    batch_sizes: tuple[PositiveInt, ...] = Field(
        (1, 8, 32, 64, 256), min_length=1, description="batches that are timed"
    )
    repeats: int = Field(15, ge=3, description="timed passes per model and batch size")
    warm_up: int = Field(3, ge=1, description="passes before timing")


def train(
    config: TrainConfig, dynamic: DynamicConfig, weights: LossWeights, recipe: DynamicRecipe
) -> list[dict[str, Any]]:
    """Runs or resumes the training and returns its history; raises as `training.train.run` and `task` do."""
    return run(config, partial(task, config, dynamic, weights, recipe))


def measure(config: TrainConfig, wanted: MeasureConfig, command: str, folder: Path) -> dict[str, Any]:
    """Scores the run's best checkpoint on the test images, counts and times it; writes and returns the record."""
    device = pick_device(config.device)
    loaded = files.load(config.checkpoint_path)
    manifest, model = loaded.manifest, loaded.model.to(device)
    images = dataset.test_images(dataset.source(config.data_dir), manifest, config.checkpoint_path)
    stage = InputStage(manifest.preprocess, model.config.image_size).to(device)
    accuracy = score(nn.Sequential(stage, model), images, config.eval_batch_size, device)
    result = {
        "checkpoint": manifest.name,
        "digest": manifest.digest,
        "images": len(images),
        "precision": "float32",
        "config": model.config.model_dump(mode="json"),
        "seed": config.seed,
        **model.dynamic.model_dump(mode="json"),
        **{key: manifest.training[key] for key in ("start", "losses", "backbone_lr_scale", "epoch")},
        **_length(config, manifest.training),
        **accuracy._asdict(),
        "calibration_bins": BINS,
        "macs": count_macs(model, model.config.image_size),
        "parameters": count_parameters(model),
        "schedule": model.schedule,
        "throughput": _throughput(model, wanted, device) if wanted.benchmark else [],
    }
    records.add("dynamicvit", command, result, device, folder, same=("digest", "precision", "images"))
    return result


def _length(config: TrainConfig, training: Mapping[str, Any]) -> dict[str, Any]:
    """How long the whole run was, whichever epoch was kept; None for what an older run did not note."""
    epochs, steps = training["config"]["epochs"], training.get("steps")
    per_epoch = {key: training[key] // training["epoch"] for key in ("steps", "images_seen")} if steps else {}
    return {
        "epochs": epochs,
        "epoch_images": per_epoch.get("images_seen"),
        **{key: epochs * per_epoch[key] if per_epoch else None for key in ("steps", "images_seen")},
        "seconds": state.facts(config.state_path)["progress"].get("seconds"),
    }


def _duration_text(length: Mapping[str, Any]) -> str:
    images = "" if length["images_seen"] is None else f"; {length['images_seen']:,} images, {length['steps']:,} steps"
    return images + ("" if length["seconds"] is None else f" in {duration(length['seconds'])}")


def _throughput(model: DynamicViT, wanted: MeasureConfig, device: torch.device) -> list[dict[str, Any]]:
    rows, side = [], model.config.image_size
    for size in wanted.batch_sizes:
        images = torch.randn(size, 3, side, side, device=device)
        pair = rates({"plain": model.vit, "own": model}, images, wanted.repeats, wanted.warm_up, device)
        rows.append(
            {
                "batch_size": size,
                "repeats": wanted.repeats,
                **pair["own"]._asdict(),
                "plain_images_per_s": pair["plain"].images_per_s,
            }
        )
    return rows


def _work(
    config: TrainConfig,
    dynamic: DynamicConfig,
    weights: LossWeights,
    recipe: DynamicRecipe,
    wanted: MeasureConfig,
    command: str,
    device: str,
) -> None:
    config = config.replace(device=device)
    folder = records.folder(config.output_dir, wanted.record, dataset.source(config.data_dir))
    train(config, dynamic, weights, recipe)
    if distributed.rank() == 0:
        result = measure(config, wanted, command, folder)
        print(f"rho {result['rho']:g}, best epoch {result['epoch']} of {result['epochs']}{_duration_text(result)}")
        print(report(result))
        print(f"written: {config.checkpoint_path}")
        print(f"recorded: {folder / 'dynamicvit.jsonl'}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of DynamicViT."""
    sections = (TrainConfig, DynamicConfig, LossWeights, DynamicRecipe, MeasureConfig)
    about = "Train DynamicViT's predictors from a trained checkpoint, and measure the result."
    parsed = cli.parser(f"python -m {MODULE}", about, *sections, without=UNUSED).parse_args(arguments)
    command = cli.command(MODULE, arguments)
    recipe = DynamicRecipe(**cli.given(DynamicRecipe, parsed))
    seen = read_manifest(recipe.start).preprocess
    config = TrainConfig(
        **cli.given(TrainConfig, parsed), native_size=seen.native_size, interpolation=seen.interpolation
    )
    dynamic = DynamicConfig(**cli.given(DynamicConfig, parsed))
    weights = LossWeights(**cli.given(LossWeights, parsed))
    wanted = MeasureConfig(**cli.given(MeasureConfig, parsed))
    distributed.start(
        partial(_work, config, dynamic, weights, recipe, wanted, command),
        config.device,
        config.multi_gpu,
        config.patience_s,
    )
