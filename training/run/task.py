"""What a run trains: a model, its objective, and how it is saved.

`Run` knows optimizer, schedule, averaging, resuming and processes; everything that differs between FreqMerge and a
trained baseline such as DynamicViT is a `Task`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from timm.optim._param_groups import param_groups_layer_decay
from torch import nn

from model import FreqMergeViT, ModelConfig, build, load_checkpoint, save_checkpoint
from model.checkpoint import Checkpoint
from model.engines.classifier import Classifier
from model.errors import ConfigError
from model.images.input_stage import InputStage
from model.images.preprocess import Preprocess
from training.config import TrainConfig
from training.data import dataset
from training.data.dataset import Source
from training.data.images import Classes
from training.errors import WeightsError
from training.run.initialise import mimetic
from training.run.objectives import Distilled, Objective, Plain
from training.run.pretrained import origin, start_from


@runtime_checkable
class Saver(Protocol):
    """Writes the trained model as a checkpoint: all or nothing, explaining itself."""

    def __call__(self, path: Path, model: nn.Module, scores: Mapping[str, float], training: Mapping[str, Any]) -> Any:
        """`model` is the task's, or the copy of it that holds the averaged weights."""
        ...


@dataclass
class Task:
    """One thing to train. `model` answers normalised images with an object that has `logits`."""

    model: nn.Module
    objective: Objective
    """Holds the same `model`, and brings the input stage."""
    preprocess: Preprocess
    source: Source
    save: Saver
    identity: dict[str, Any]
    """JSON facts (all of the model's config) that a resumed run must share with the one it continues."""
    groups: Callable[[nn.Module], list[dict[str, Any]]] | None = None
    """Parameter groups for the optimizer (`params`, `lr_scale`, `weight_decay`); None leaves them to timm."""
    command: str = "training.train"
    """Module that a reader runs to train this again."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Further facts for the checkpoint's `training` record, such as the teacher's digest."""


def freqmerge(config: TrainConfig, model_config: ModelConfig) -> Task:
    """FreqMerge, or the plain ViT where `config.freqmerge` is off, with a teacher if there is one.

    The data decide the number of classes. Raises `ConfigError` where the config names another one, `DataError` for
    data of no known layout, `WeightsError` for starting weights or a teacher that do not fit, and `CheckpointError`
    for a teacher that is none.
    """
    source = dataset.source(config.data_dir)
    model_config = _fitted(model_config, source)
    if not config.freqmerge:
        model_config = model_config.replace(keep_rate=1.0)
    model = _model(config, model_config)
    preprocess = preprocessing(config, model, source)
    stage = InputStage(preprocess, model_config.image_size)
    model.set_grad_checkpointing(config.grad_checkpoint)
    facts: dict[str, Any] = {}
    if config.pretrained and not config.resume:  # a state remembers what its run started from
        facts["started_from"] = origin(config.pretrained, model_config.backbone)
    if config.teacher is None:
        objective: Objective = Plain(model, stage, config.label_smoothing)
    else:
        teacher = load_checkpoint(config.teacher)
        facts["teacher"] = {"name": teacher.manifest.name, "digest": teacher.manifest.digest}
        objective = Distilled(
            model,
            stage,
            judge(teacher, preprocess, source),
            kind=config.distill,
            weight=config.distill_weight,
            temperature=config.temperature,
            label_smoothing=config.label_smoothing,
        )
    return Task(
        model=model,
        objective=objective,
        preprocess=preprocess,
        source=source,
        save=partial(_save, preprocess=preprocess, classes=source.classes),
        identity={**model_config.model_dump(mode="json"), "teacher": facts.get("teacher", {}).get("digest")},
        groups=partial(_layered, config=config) if config.layer_decay < 1 else None,
        facts=facts,
    )


def _fitted(config: ModelConfig, source: Source) -> ModelConfig:
    """The config with the classes of the data."""
    classes = len(source.classes)
    if "num_classes" in config.model_fields_set and config.num_classes != classes:
        raise ConfigError(f"num_classes: expected the {classes} of {source.name}, found {config.num_classes}")
    return config if config.num_classes == classes else config.replace(num_classes=classes)


def preprocessing(config: TrainConfig, model: FreqMergeViT, source: Source) -> Preprocess:
    """How the run's images become the model's; one's own pictures are normalised as timm does it for the backbone."""
    fields: dict[str, Any] = {"native_size": config.native_size, "interpolation": config.interpolation}
    if source.own:
        known: Any = model.vit.pretrained_cfg
        fields |= {key: known[key] for key in ("mean", "std")}
    return Preprocess(**fields)


def judge(teacher: Checkpoint, preprocess: Preprocess, source: Source) -> Classifier:
    """The checkpoint as a teacher of images of this native size; raises `WeightsError` if it knows others."""
    known = teacher.manifest
    if known.preprocess.native_size != preprocess.native_size or known.class_names != source.classes.names:
        raise WeightsError(
            f"teacher: expected a model of {source.name} at {preprocess.native_size} pixels, found "
            f"{len(known.class_names)} classes at {known.preprocess.native_size} pixels in {teacher.path}"
        )
    return Classifier(teacher.model, InputStage(known.preprocess, teacher.model.config.image_size))


def _model(config: TrainConfig, model_config: ModelConfig) -> FreqMergeViT:
    drop_path, patch_drop = config.drop_path, config.patch_drop
    if config.pretrained and not config.resume:  # a resumed run has weights of its own
        return start_from(config.pretrained, model_config, drop_path=drop_path, patch_drop=patch_drop)
    model = build(model_config, drop_path=drop_path, patch_drop=patch_drop)
    if config.init == "mimetic":
        mimetic(model.vit)
    return model


def _layered(model: FreqMergeViT, config: TrainConfig) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = param_groups_layer_decay(
        model.vit, config.weight_decay, layer_decay=config.layer_decay
    )
    return groups


def _save(
    path: Path,
    model: FreqMergeViT,
    scores: Mapping[str, float],
    training: Mapping[str, Any],
    preprocess: Preprocess,
    classes: Classes,
) -> None:
    save_checkpoint(
        path,
        model,
        name=model.config.backbone,
        preprocess=preprocess,
        class_names=classes.names,
        superclasses=classes.superclasses,
        scores=scores,
        training=training,
    )
