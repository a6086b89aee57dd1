"""DynamicViT as something that `training.train.run` trains: its recipe, objective and parameter groups."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from timm.optim._param_groups import param_groups_weight_decay
from torch import Tensor, nn

from model import load_checkpoint
from model.config import Frozen
from model.errors import ConfigError
from model.images.input_stage import InputStage
from model.manifest import default_checkpoint_path
from training.config import TrainConfig
from training.data import dataset
from training.data.images import Targets
from training.dynamicvit import files
from training.dynamicvit.loss import LossWeights, parts, taught
from training.dynamicvit.model import DynamicConfig, DynamicViT, Masked
from training.run.objectives import Judged, Objective
from training.run.task import Task, judge


class DynamicRecipe(Frozen):
    """Where DynamicViT starts and how its backbone learns."""

    ckpt: Path | None = Field(
        None, description="trained checkpoint: start and frozen teacher; none takes the one that ships"
    )
    backbone_lr_scale: float = Field(
        0.01, ge=0, le=1, description="learning rate of the backbone over that of the predictors (the paper's 0.01)"
    )

    @property
    def start(self) -> Path:
        """The checkpoint to start from; raises `CheckpointError` if none is named and none ships."""
        return self.ckpt or default_checkpoint_path()


class Dynamic(Objective):
    """DynamicViT's loss against a frozen teacher that sees the same pixels."""

    def __init__(
        self, model: DynamicViT, stage: InputStage, teacher: nn.Module, weights: LossWeights, label_smoothing: float
    ) -> None:
        super().__init__(model, stage)
        self.teacher = teacher.eval().requires_grad_(False)
        self.shares = model.shares
        self.weights, self.label_smoothing = weights, label_smoothing

    def train(self, mode: bool = True) -> Dynamic:
        """Sets the student's mode; the teacher always judges."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, pixels: Float[Tensor, "batch 3 native native"], targets: Targets) -> Judged:
        """The paper's loss; only in training mode, where tokens are masked."""
        images = self.stage.normalise(pixels)
        answer = self.model(images)
        assert isinstance(answer, Masked)  # `Run` trains in training mode
        classes = F.cross_entropy(answer.logits.float(), targets, label_smoothing=self.label_smoothing)
        losses = parts(answer, taught(self.teacher, images), classes, self.shares, self.weights)
        return Judged(losses.total, answer.logits.float())


def task(config: TrainConfig, dynamic: DynamicConfig, weights: LossWeights, recipe: DynamicRecipe) -> Task:
    """DynamicViT as something that `training.train.run` trains.

    Raises `CheckpointError`, `BackboneError` and `ConfigError` for a start that is no plain ViT of this kind, and
    `WeightsError` for one of other classes than the data's.
    """
    manifest, model = files.start(recipe.start, dynamic, config.drop_path)
    if config.native_size != manifest.preprocess.native_size:
        raise ConfigError(
            f"native_size: expected {manifest.preprocess.native_size}, with which {recipe.start} was trained, found "
            f"{config.native_size}"
        )
    model.vit.set_grad_checkpointing(config.grad_checkpoint)
    source = dataset.source(config.data_dir)
    teacher = judge(load_checkpoint(recipe.start, keep_rate=1.0), manifest.preprocess, source)
    stage = InputStage(manifest.preprocess, model.config.image_size)
    own = {**dynamic.model_dump(mode="json"), **weights.model_dump(mode="json")}
    return Task(
        model=model,
        objective=Dynamic(model, stage, teacher.model.vit, weights, config.label_smoothing),
        preprocess=manifest.preprocess,
        source=source,
        save=partial(files.save, preprocess=manifest.preprocess, classes=source.classes),
        identity={
            **model.config.model_dump(mode="json"),
            **own,
            "backbone_lr_scale": recipe.backbone_lr_scale,
            "start": manifest.digest,
        },
        groups=partial(groups, weight_decay=config.weight_decay, backbone_lr_scale=recipe.backbone_lr_scale),
        command="training.dynamicvit",
        facts={
            "start": {"name": manifest.name, "digest": manifest.digest},
            "losses": weights.model_dump(mode="json"),
            "backbone_lr_scale": recipe.backbone_lr_scale,
        },
    )


def groups(model: DynamicViT, weight_decay: float, backbone_lr_scale: float) -> list[dict[str, Any]]:
    """Parameter groups: the backbone learns more slowly; biases and norms do not decay."""
    result = []
    for module, scale in ((model.vit, backbone_lr_scale), (model.predictors, 1.0)):
        undecayed = module.no_weight_decay() if module is model.vit else ()
        unscaled = param_groups_weight_decay(module, weight_decay, no_weight_decay_list=undecayed)
        result += [{**group, "lr_scale": scale} for group in unscaled]
    return result
