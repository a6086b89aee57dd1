"""Controls of the frequency score: what is left when one of its ingredients is taken away.

If they do as well as `lfgm`, the ingredient is not what helps: `shuffled` keeps the distribution of the
score and loses where it is, `inverted` protects smooth regions, `sobel` is plain local contrast.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from model.merging.frequency import normalise
from model.merging.strategies.lfgm import lfgm
from model.merging.strategies.view import View, pick


def shuffled(view: View) -> Float[Tensor, "batch tokens"]:
    """The frequency score, dealt out to the tokens of each image at random; draws from torch's global generator."""
    score = lfgm(view)
    return pick(score, torch.rand_like(score).argsort(dim=1))


def inverted(view: View) -> Float[Tensor, "batch tokens"]:
    """One minus the frequency score."""
    return 1 - lfgm(view)


def sobel(view: View) -> Float[Tensor, "batch tokens"]:
    """Sobel energy of the channel mean, stretched to 0..1, pooled over the patches of each token."""
    return view.pooled(normalise(sobel_energy(view.channel_mean(), view.grid)))


def sobel_energy(values: Float[Tensor, "batch patches"], grid: tuple[int, int]) -> Float[Tensor, "batch patches"]:
    """gx² + gy² of Sobel's 3 × 3 operators (Sobel & Feldman, 1968) on the grid, whose border is repeated outwards."""
    across = values.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    kernels = torch.stack([across, across.T])[:, None]
    image = F.pad(values.unflatten(1, grid)[:, None], (1, 1, 1, 1), mode="replicate")
    return F.conv2d(image, kernels).square().sum(dim=1).flatten(1)
