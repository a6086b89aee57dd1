"""Temperature scaling: one number that makes a classifier's confidence as large as its accuracy; and from where on it
is more often right than wrong.

Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017), section 4.2: logits are divided by the T > 0 with
the smallest cross-entropy on images that the model was not trained on. No decision changes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from model import FreqMergeViT

SMALLEST, LARGEST = 0.05, 20.0
"""Limits of the temperature: where every image is right (or the answers are noise) there is no best one."""
STEPS = 60

STEPS_TO_ONE = 10_000
"""Of the threshold of certainty."""


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


class Certainty(NamedTuple):
    """From which probability of the best class an answer counts as certain, and what that is worth; shares of 0..1."""

    certain_from: float
    certain: float
    """Answers that are."""
    right_of_certain: float | None
    """At least half; None if no answer is certain."""
    right_of_others: float | None
    """At most half; None if every answer is certain."""


def fit_certainty(logits: Float[Tensor, "count classes"], labels: Int[Tensor, " count"]) -> Certainty:
    """The threshold, of 0 to 1 in steps of 0.0001, that tells right answers from wrong ones with the fewest mistakes.

    A mistake is a right answer below it or a wrong one from it on; of several that make as few, the highest. So at most
    half of the answers below it are right (else 0 would make fewer), and at least half of the others (else 1 would).
    """
    confidence, best = logits.double().softmax(dim=1).max(dim=1)
    right = best == labels.to(logits.device)
    step = (confidence * STEPS_TO_ONE).long()
    rights, wrongs = (torch.bincount(step[which], minlength=STEPS_TO_ONE + 1) for which in (right, ~right))
    below = rights.cumsum(0) - rights
    from_it_on = wrongs.sum() - wrongs.cumsum(0) + wrongs
    mistakes = (below + from_it_on).tolist()
    fewest = min(mistakes)
    threshold = max(at for at, made in enumerate(mistakes) if made == fewest) / STEPS_TO_ONE
    certain = confidence >= threshold
    shares = [part.double().mean().item() if len(part) else None for part in (right[certain], right[~certain])]
    return Certainty(threshold, certain.double().mean().item(), *shares)


@torch.no_grad()
def fold_temperature(model: FreqMergeViT, temperature: float) -> None:
    """Divides the model's logits by the temperature, in the weights of its head: every engine then answers alike."""
    for name in ("head", "head_dist"):  # the second is a distilled DeiT's, whose answer is the mean of both
        head = getattr(model.vit, name, None)
        for parameter in head.parameters() if head is not None else ():
            parameter.div_(temperature)
