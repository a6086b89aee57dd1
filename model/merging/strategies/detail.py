"""Frequency scores of more than the channel mean, as free of parameters as LFGM.

Every block of a pre-norm ViT reads the residual stream through a LayerNorm, which subtracts the channel mean: LFGM
filters the one direction that the network never reads. These score all channels instead: of the stream, of the
stream as a LayerNorm shows it, of the features whose cosine decides who merges, and of the picture itself.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from model.merging.frequency import energy_score, normalise
from model.merging.matching import weighted_merge
from model.merging.strategies.lfgm import lfgm
from model.merging.strategies.strategy import summed_size
from model.merging.strategies.view import View


def stream_detail(view: View) -> Float[Tensor, "batch tokens"]:
    """High-frequency energy of all channels of the residual stream."""
    return _detail(view, view.tokens)


def normalised_detail(view: View) -> Float[Tensor, "batch tokens"]:
    """The same after a LayerNorm without weights, which is how a block sees the stream."""
    return _detail(view, F.layer_norm(view.tokens.float(), view.tokens.shape[2:]))


def feature_detail(view: View) -> Float[Tensor, "batch tokens"]:
    """The same of the features that are compared, the keys unless `match_on` says otherwise."""
    return _detail(view, view.features)


def pixel_detail(view: View) -> Float[Tensor, "batch tokens"]:
    """What the patches cannot show of the picture: variance of the pixels inside each, mean over colours."""
    return view.pooled(normalise(variance_inside(view.images, view.grid)))


def variance_inside(
    images: Float[Tensor, "batch 3 height width"], grid: tuple[int, int]
) -> Float[Tensor, "batch patches"]:
    """Population variance of the pixels of each patch, mean over the colour channels."""
    blocks = images.float().unflatten(3, (grid[1], -1)).unflatten(2, (grid[0], -1))
    variance: Tensor = blocks.var(dim=(3, 5), correction=0)
    return variance.mean(dim=1).flatten(1)


def detail_weighted_mean(
    view: View, assignment: Float[Tensor, "batch kept tokens"]
) -> tuple[Float[Tensor, "batch kept dim"], Float[Tensor, "batch kept"]]:
    """The mean of the tokens that join, weighted by size times 1 + frequency score (LFGM), and the sum of the sizes."""
    tokens, _ = weighted_merge(view.tokens, view.size * (1 + lfgm(view)), assignment)
    return tokens, summed_size(view, assignment)


def _detail(view: View, features: Float[Tensor, "batch tokens channels"]) -> Float[Tensor, "batch tokens"]:
    return view.pooled(energy_score(view.spread(features), view.basis))
