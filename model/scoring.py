"""Strategies that decide which tokens a merging block reduces, by name.

A strategy has two parts: `score` protects tokens (0..1, or None), `assign` turns the score into the
new token of every old one. The frequency score is one strategy among siblings, not a constant of the
code. To add one, write the two functions and name them in `STRATEGIES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from model.frequency import normalise, score_values
from model.merge import match, penalised_similarity, pool_over_patches, unmerge


@dataclass(frozen=True)
class View:
    """What a strategy sees of one merging block; prefix tokens are left out."""

    tokens: Float[Tensor, "batch tokens dim"]
    """Residual stream after attention."""
    features: Float[Tensor, "batch tokens features"]
    """Keys averaged over heads (or the tokens themselves), whose cosine is the similarity."""
    attention: Float[Tensor, "batch tokens"] | None
    """Attention that each token receives from the class token, mean over heads; None unless asked for."""
    source_map: Int[Tensor, "batch patches"]
    basis: Float[Tensor, "patches modes"]
    """Low-frequency modes of the grid, see `model.frequency.low_pass_basis`."""
    first_score: Float[Tensor, "batch patches"]
    """Frequency score of the first merging block."""
    rescore: str
    """'grid' or 'pool', see `ModelConfig.rescore`."""

    @property
    def is_first(self) -> bool:
        """Whether nothing has merged yet: tokens are patches."""
        return self.tokens.shape[1] == self.source_map.shape[1]

    def patch_score(self) -> Float[Tensor, "batch patches"]:
        """Frequency score of every patch, tokens spread over the patches that they own."""
        if self.is_first or self.rescore == "pool":
            return self.first_score
        mean = self.tokens.float().mean(dim=2, keepdim=True)
        return score_values(unmerge(mean, self.source_map)[:, :, 0], self.basis)

    def pooled(self, patches: Float[Tensor, "batch patches"]) -> Float[Tensor, "batch tokens"]:
        """Mean of a score per patch over the patches that each token owns."""
        return patches if self.is_first else pool_over_patches(patches, self.source_map, self.tokens.shape[1])


Score = Callable[[View], Float[Tensor, "batch tokens"] | None]
Assign = Callable[[View, Float[Tensor, "batch tokens"] | None, int, float], Int[Tensor, "batch tokens"]]


def merge_similar(
    view: View, score: Float[Tensor, "batch tokens"] | None, kept: int, alpha: float
) -> Int[Tensor, "batch tokens"]:
    """Bipartite soft matching on the penalised similarity."""
    return match(penalised_similarity(view.features, score, alpha), view.features.shape[1] - kept)


def prune_at_random(
    view: View, score: Float[Tensor, "batch tokens"] | None, kept: int, alpha: float
) -> Int[Tensor, "batch tokens"]:
    """A random subset stays, in order; the others are dropped (-1). Draws from torch's global generator."""
    batch, tokens, _ = view.tokens.shape
    draw = torch.rand(batch, tokens, device=view.tokens.device)
    position = torch.arange(tokens, device=view.tokens.device)
    stays = (draw.topk(kept, dim=1).indices[:, :, None] == position).any(dim=1)
    return torch.where(stays, torch.cumsum(stays.int(), dim=1) - 1, -1)


def lfgm(view: View) -> Float[Tensor, "batch tokens"]:
    """Frequency score, pooled over the patches of each token: edges and detail are protected."""
    return view.pooled(view.patch_score())


def class_attention(view: View) -> Float[Tensor, "batch tokens"]:
    """Attention from the class token, stretched to 0..1: what the class token reads is protected.

    In the spirit of EViT (Liang et al., ICLR 2022), used as a penalty rather than to prune.
    """
    assert view.attention is not None  # `needs_attention` below guarantees it
    return normalise(view.attention)


def unprotected(view: View) -> None:
    """No score: plain ToMe."""
    return None


@dataclass(frozen=True)
class Strategy:
    """A named way to reduce tokens."""

    score: Score
    assign: Assign = merge_similar
    needs_attention: bool = False


STRATEGIES: dict[str, Strategy] = {
    "lfgm": Strategy(lfgm),
    "none": Strategy(unprotected),
    "attention": Strategy(class_attention, needs_attention=True),
    "random": Strategy(unprotected, assign=prune_at_random),
}
