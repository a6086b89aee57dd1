"""PiToMe: tokens with many similar ones merge, isolated ones are kept.

After Tran et al., "Accelerating Transformers with Spectrum-Preserving Token Merging" (NeurIPS 2024).
A token's energy is high where it lies in a large cluster; the 2k tokens of highest energy are
dealt out in turns to two sets, and each token of the first merges into its most similar one of the second.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from model.merging.strategies.view import View, pick


def merge_high_energy(
    view: View, score: Float[Tensor, "batch tokens"] | None, kept_count: int
) -> Int[Tensor, "batch tokens"]:
    """Tokens of high energy merge pairwise; all that stay keep their order."""
    unit = F.normalize(view.features.float(), dim=2)
    cosine = unit @ unit.transpose(1, 2)
    merged = cosine.shape[1] - kept_count
    order = energy(cosine, margin(view.depth)).argsort(dim=1, descending=True, stable=True)
    sources, destinations = order[:, : 2 * merged : 2], order[:, 1 : 2 * merged : 2]
    partner = pick(pick(cosine, sources).transpose(1, 2), destinations).argmax(dim=1)
    stays = torch.ones_like(order).scatter(1, sources, 0)
    row = torch.cumsum(stays, dim=1) - 1
    return row.scatter(1, sources, pick(row, pick(destinations, partner)))


def margin(depth: float) -> float:
    """Similarity from which tokens count as alike: 0.9 in the first block, falling linearly to 0 after the last."""
    return 0.9 - 0.9 * depth


def energy(cosine: Float[Tensor, "batch tokens tokens"], margin: float) -> Float[Tensor, "batch tokens"]:
    """Mean over all tokens of their cosine where it reaches the margin m, of exp(cosine - m) - 1 where it does not."""
    return torch.where(cosine >= margin, cosine, torch.expm1(cosine - margin)).mean(dim=2)
