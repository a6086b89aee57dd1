"""Accuracy and calibration of a classifier on labelled images."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from model.engines.device import exact_float32
from training.data.images import Images
from training.errors import DivergedError

BINS = 15
"""Bins of the calibration error, as in Guo et al. (2017)."""


class Scores(NamedTuple):
    """Shares of 0..1, and the mean cross-entropy in nats."""

    top1: float
    top5: float
    loss: float
    calibration_error: float


def score(classifier: nn.Module, images: Images, batch_size: int, device: torch.device) -> Scores:
    """Scores of a classifier that takes uint8 images and answers with `logits`."""
    return scores(answers(classifier, images, batch_size, device), images.labels)


@torch.inference_mode()
def answers(
    classifier: nn.Module, images: Images, batch_size: int, device: torch.device
) -> Float[Tensor, "count classes"]:
    """Logits of every image, float32 on the CPU; raises `DivergedError` if any is not a finite number.

    On CUDA float32 is computed as such, without TF32, here and from then on.
    """
    if device.type == "cuda":
        exact_float32()
    was_training = classifier.training
    classifier.eval()
    parts = [classifier(batch.to(device).pixels).logits.float().cpu() for batch in images.batches(batch_size)]
    classifier.train(was_training)
    logits = torch.cat(parts)
    broken = int((~logits.isfinite().all(dim=1)).sum())
    if broken:
        raise DivergedError(
            f"expected finite logits, found NaN or infinity for {broken} of {len(logits)} images; the weights are "
            "broken or the precision is too low: use an earlier checkpoint or float32"
        )
    return logits


def scores(logits: Float[Tensor, "count classes"], labels: Int[Tensor, " count"]) -> Scores:
    """Top-1, top-5, loss and calibration error of logits."""
    labels = labels.to(logits.device)
    hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return Scores(
        top1=hits[:, 0].double().mean().item(),
        top5=hits.any(dim=1).double().mean().item(),
        loss=F.cross_entropy(logits.double(), labels).item(),
        calibration_error=calibration_error(logits, labels),
    )


def calibration_error(logits: Float[Tensor, "count classes"], labels: Int[Tensor, " count"], bins: int = BINS) -> float:
    """Expected calibration error, 0..1: mean gap between confidence and accuracy over equally wide bins.

    Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017), equation 3; a bin holds its upper edge.
    """
    confidence, best = logits.double().softmax(dim=1).max(dim=1)
    gap = confidence - (best == labels).double()
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    per_bin = torch.zeros(bins, dtype=torch.float64, device=logits.device).index_add(0, place, gap)
    return float(per_bin.abs().sum() / len(labels))
