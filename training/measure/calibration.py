"""Temperature scaling: one number that makes a classifier's confidence as large as its accuracy.

Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017), section 4.2: logits are divided by the T > 0 with
the smallest cross-entropy on images that the model was not trained on. No decision changes.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from model import FreqMergeViT

SMALLEST, LARGEST = 0.05, 20.0
"""Limits of the temperature: where every image is right (or the answers are noise) there is no best one."""
STEPS = 60


def fit_temperature(logits: Float[Tensor, "count classes"], labels: Int[Tensor, " count"]) -> float:
    """The temperature with the smallest cross-entropy, `SMALLEST` to `LARGEST`."""
    logits = logits.double()
    right = logits.gather(1, labels[:, None].to(logits.device))[:, 0]
    # cross-entropy is convex in β = 1 / T, and its slope there is mean(Σ p z − z_label): bisection finds where it turns
    low, high = math.log(1 / LARGEST), math.log(1 / SMALLEST)
    for _ in range(STEPS):
        middle = (low + high) / 2
        shares = (logits * math.exp(middle)).softmax(dim=1)
        slope = ((shares * logits).sum(dim=1) - right).mean().item()
        low, high = (middle, high) if slope < 0 else (low, middle)
    return math.exp(-(low + high) / 2)


@torch.no_grad()
def fold_temperature(model: FreqMergeViT, temperature: float) -> None:
    """Divides the model's logits by the temperature, in the weights of its head: every engine then answers alike."""
    for name in ("head", "head_dist"):  # the second is a distilled DeiT's, whose answer is the mean of both
        head = getattr(model.vit, name, None)
        for parameter in head.parameters() if head is not None else ():
            parameter.div_(temperature)
