"""The losses of DynamicViT (Rao et al., NeurIPS 2021, section 3.4), as functions of their arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from model.config import Frozen
from training.dynamicvit.model import Masked
from training.run.objectives import soft_divergence


class LossWeights(Frozen):
    """Weights of the parts beside the cross-entropy; the defaults are the paper's."""

    ratio_weight: float = Field(2.0, ge=0, description="weight of the squared miss of the shares of tokens to keep")
    kl_weight: float = Field(0.5, ge=0, description="weight of the divergence from the teacher's prediction")
    token_weight: float = Field(0.5, ge=0, description="weight of the squared distance of tokens from the teacher's")


class Answer(NamedTuple):
    """What the frozen teacher says."""

    logits: Float[Tensor, "batch classes"]
    tokens: Float[Tensor, "batch patches dim"]
    """Patch tokens after the final norm."""


class Parts(NamedTuple):
    """The loss and what it is made of, each without its weight."""

    total: Float[Tensor, ""]
    classes: Float[Tensor, ""]
    ratio: Float[Tensor, ""]
    kl: Float[Tensor, ""]
    tokens: Float[Tensor, ""]


@torch.no_grad()
def taught(vit: Any, images: Float[Tensor, "batch 3 height width"]) -> Answer:
    """The teacher's answer: a plain timm ViT, in evaluation mode."""
    x = vit.forward_features(images)
    return Answer(vit.forward_head(x), x[:, vit.num_prefix_tokens :])


def ratio_loss(masks: Sequence[Float[Tensor, "batch patches"]], shares: Sequence[float]) -> Float[Tensor, ""]:
    """Mean over images and stages of (share to keep - share kept)²."""
    missed = [mask.mean(dim=1) - share for mask, share in zip(masks, shares, strict=True)]
    return torch.stack(missed).square().mean()


def kl_loss(logits: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """Divergence of the prediction from the teacher's, nats per image.

    KL(teacher ‖ prediction), as usual in distillation and in the authors' experiments; the paper writes its
    arguments the other way round.
    """
    return soft_divergence(logits, teacher, temperature=1.0)


def token_loss(
    tokens: Float[Tensor, "batch patches dim"],
    teacher: Float[Tensor, "batch patches dim"],
    mask: Float[Tensor, "batch patches"],
) -> Float[Tensor, ""]:
    """Mean squared distance per feature over the tokens that are left; 0 where none is.

    The mask only selects: its gradient comes from the other parts.
    """
    left = mask.detach()
    distance = (tokens - teacher).square().mean(dim=2)
    return (distance * left).sum() / left.sum().clamp(min=1)


def parts(answer: Masked, teacher: Answer, classes: Tensor, shares: Sequence[float], weights: LossWeights) -> Parts:
    """The whole loss; `classes` is the cross-entropy of the answer. Float32."""
    ratio = ratio_loss(answer.masks, shares)
    kl = kl_loss(answer.logits.float(), teacher.logits.float())
    tokens = token_loss(answer.tokens.float(), teacher.tokens.float(), answer.masks[-1])
    total = classes + weights.ratio_weight * ratio + weights.kl_weight * kl + weights.token_weight * tokens
    return Parts(total, classes, ratio, kl, tokens)
