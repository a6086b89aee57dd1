"""What one training step minimises: an objective turns pixels and targets into a loss and logits.

An objective is a module that holds the model it trains, so that DistributedDataParallel wraps the objective and
every gradient is averaged whatever the objective asks of its model. `Run` gives it augmented float pixels of the native
size (0..255) under autocast; enlarging and normalising is the objective's first step, because a teacher may see
another size than its student.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from model import FreqMergeViT
from model.engines.classifier import Classifier
from model.images.input_stage import InputStage
from training.data.images import Targets


class Judged(NamedTuple):
    """The loss of a batch in nats (mean over its images), and the logits that count as its answer."""

    loss: Float[Tensor, ""]
    logits: Float[Tensor, "batch classes"]


class Objective(nn.Module, ABC):
    """Base of the objectives: `model` is what learns; `stage` enlarges and normalises."""

    def __init__(self, model: nn.Module, stage: InputStage) -> None:
        super().__init__()
        self.model = model
        self.stage = stage

    @abstractmethod
    def forward(self, pixels: Float[Tensor, "batch 3 native native"], targets: Targets) -> Judged:
        """Loss and logits of augmented float pixels in 0..255."""


class Plain(Objective):
    """Cross-entropy with label smoothing."""

    def __init__(self, model: nn.Module, stage: InputStage, label_smoothing: float = 0.0) -> None:
        super().__init__(model, stage)
        self.label_smoothing = label_smoothing

    def forward(self, pixels: Float[Tensor, "batch 3 native native"], targets: Targets) -> Judged:
        """Cross-entropy of the model's logits."""
        logits = answer(self.model, self.stage.normalise(pixels)).float()
        return Judged(F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing), logits)


class Distilled(Plain):
    """Cross-entropy blended with what a frozen teacher says of the same pixels.

    Soft (Hinton et al., "Distilling the Knowledge in a Neural Network", 2015; Touvron et al., "Training
    data-efficient image transformers", ICML 2021, eq. 2): (1 − λ) CE + λ τ² KL(teacher ‖ student) at temperature τ.
    Hard (Touvron et al., eq. 3): (1 − λ) CE + λ CE against the teacher's decision.
    """

    def __init__(
        self,
        model: nn.Module,
        stage: InputStage,
        teacher: Classifier,
        *,
        kind: Literal["soft", "hard"] = "soft",
        weight: float = 0.5,
        temperature: float = 3.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(model, stage, label_smoothing)
        self.teacher = teacher.eval().requires_grad_(False)
        self.kind, self.weight, self.temperature = kind, weight, temperature

    def train(self, mode: bool = True) -> Distilled:
        """Sets the student's mode; the teacher always judges."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, pixels: Float[Tensor, "batch 3 native native"], targets: Targets) -> Judged:
        """The blend of both losses."""
        loss, logits = super().forward(pixels, targets)
        with torch.no_grad():
            taught = answer(self.teacher.model, self.teacher.input_stage.normalise(pixels)).float()
        if self.kind == "soft":
            teaching = soft_divergence(logits, taught, self.temperature)
        else:
            teaching = F.cross_entropy(logits, taught.argmax(dim=1))
        return Judged((1 - self.weight) * loss + self.weight * teaching, logits)


def soft_divergence(
    logits: Float[Tensor, "batch classes"], taught: Float[Tensor, "batch classes"], temperature: float
) -> Float[Tensor, ""]:
    """τ² KL(teacher ‖ student) at temperature τ, mean over the batch, in nats."""
    student, teacher = (F.log_softmax(each / temperature, dim=1) for each in (logits, taught))
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def answer(model: nn.Module, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
    """Logits of a model; of timm's own ViT where nothing merges, which is faster and may drop patches."""
    if isinstance(model, FreqMergeViT) and not model.config.merges:
        logits: Tensor = model.vit(images)
    else:
        logits = model(images).logits
    return logits
