"""Accuracy of a classifier on labelled images."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from training.data import Images


class Scores(NamedTuple):
    """Shares of 0..1, and the mean cross-entropy in nats."""

    top1: float
    top5: float
    loss: float


@torch.inference_mode()
def score(classifier: nn.Module, images: Images, batch_size: int, device: torch.device) -> Scores:
    """Top-1, top-5 and loss of a classifier that takes uint8 images and answers with `logits`."""
    was_training = classifier.training
    classifier.eval()
    hits1 = hits5 = 0
    loss = 0.0
    for batch in images.batches(batch_size):
        here = batch.to(device)
        logits = classifier(here.pixels).logits.float()
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == here.labels[:, None]
        hits1 += int(best[:, 0].sum())
        hits5 += int(best.sum())
        loss += float(F.cross_entropy(logits, here.labels, reduction="sum"))
    classifier.train(was_training)
    return Scores(hits1 / len(images), hits5 / len(images), loss / len(images))
