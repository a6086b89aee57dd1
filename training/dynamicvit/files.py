"""DynamicViT's checkpoints: those of `model.checkpoint`, with the predictors' weights and settings in them.

The manifest's `training["dynamicvit"]` says where the predictors stand; the digest covers it like everything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model import build, checkpoint, save_checkpoint
from model.errors import CheckpointError
from model.images.preprocess import Preprocess
from model.manifest import Manifest
from training.data.images import Classes
from training.dynamicvit.model import DynamicConfig, DynamicViT

KEY = "dynamicvit"


@dataclass(frozen=True)
class Loaded:
    """A DynamicViT in evaluation mode, float32, on the CPU, and its manifest."""

    manifest: Manifest
    model: DynamicViT
    path: Path


def save(
    path: Path,
    model: DynamicViT,
    scores: Mapping[str, float],
    training: Mapping[str, Any],
    preprocess: Preprocess,
    classes: Classes,
) -> Manifest:
    """Writes the checkpoint in one step, see `model.save_checkpoint`, and returns its manifest."""
    facts = {**training, KEY: model.dynamic.model_dump(mode="json")}
    name = f"dynamicvit_{model.config.backbone}"
    return save_checkpoint(
        path,
        model,
        name=name,
        preprocess=preprocess,
        class_names=classes.names,
        superclasses=classes.superclasses,
        scores=scores,
        training=facts,
    )


def load(path: Path, **changes: Any) -> Loaded:
    """The DynamicViT in `path`, verified; `changes` replace fields of its `DynamicConfig`, such as `rho`.

    Raises `CheckpointError` for what `model.load_checkpoint` refuses and for a checkpoint of another model.
    """
    manifest, state = checkpoint.read(path)
    if KEY not in manifest.training:
        raise CheckpointError(
            f"{path}: expected a DynamicViT, found {manifest.name!r} without predictors; train them with "
            f"`python -m training.dynamicvit --ckpt {path}`"
        )
    dynamic = DynamicConfig(**{**manifest.training[KEY], **changes})
    model = DynamicViT(build(manifest.config), dynamic)
    checkpoint.fill(model, state, path)
    return Loaded(manifest, model.eval().requires_grad_(False), path)


def start(path: Path, dynamic: DynamicConfig, drop_path: float = 0.0) -> tuple[Manifest, DynamicViT]:
    """The plain ViT of a trained checkpoint with fresh predictors, and the checkpoint's manifest.

    Raises `CheckpointError`, `BackboneError` and `ConfigError`.
    """
    manifest, state = checkpoint.read(path)
    base = build(manifest.config.replace(keep_rate=1.0), drop_path=drop_path)
    checkpoint.fill(base, state, path)
    return manifest, DynamicViT(base, dynamic)
