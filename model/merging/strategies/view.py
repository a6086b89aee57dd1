"""What a strategy sees of one merging block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from model.config import MergeConfig
from model.merging.frequency import score_values
from model.merging.matching import pool_over_patches, unmerge


class First(NamedTuple):
    """What the first merging block saw on the whole grid, where every token is a patch."""

    mean: Float[Tensor, "batch patches"]
    """Channel mean of every patch."""
    score: Float[Tensor, "batch patches"]
    """Frequency score (LFGM) of every patch, 0..1."""
    protection: Float[Tensor, "batch patches"] | None = None
    """The score that the strategy gave every patch; None before it did, and where it gives none."""


@dataclass(frozen=True)
class View:
    """The patch tokens of one merging block, after its attention; prefix tokens are left out."""

    tokens: Float[Tensor, "batch tokens dim"]
    """Residual stream after attention."""
    size: Float[Tensor, "batch tokens"]
    """Patches inside each token."""
    features: Float[Tensor, "batch tokens features"]
    """Keys averaged over heads (or the tokens themselves), whose cosine is the similarity."""
    attention: Float[Tensor, "batch tokens"] | None
    """Attention that each token receives from the class token, mean over heads; None unless asked for."""
    importance: Float[Tensor, "batch tokens"] | None
    """The same, each head's attention times the norm of its value; None unless asked for."""
    images: Float[Tensor, "batch 3 height width"]
    """What the backbone sees, normalised."""
    source_map: Int[Tensor, "batch patches"]
    grid: tuple[int, int]
    """Rows and columns of patches."""
    basis: Float[Tensor, "patches modes"]
    """Low-frequency modes of the grid, see `model.merging.frequency.low_pass_basis`."""
    first: First
    depth: float
    """Share of the model's blocks that lie before this one, 0..1."""
    config: MergeConfig

    @property
    def is_first(self) -> bool:
        """Whether nothing has merged yet: tokens are patches."""
        return self.tokens.shape[1] == self.source_map.shape[1]

    def spread(self, values: Float[Tensor, "batch tokens channels"]) -> Float[Tensor, "batch patches channels"]:
        """What every patch has of its token, in float32; a merged token gives the same to all of its patches."""
        return values.float() if self.is_first else unmerge(values.float(), self.source_map)

    def channel_mean(self) -> Float[Tensor, "batch patches"]:
        """Channel mean of every patch."""
        return self.first.mean if self.is_first else self.spread(self.tokens.float().mean(dim=2, keepdim=True))[:, :, 0]

    def patch_score(self) -> Float[Tensor, "batch patches"]:
        """Frequency score (LFGM) of every patch."""
        return self.first.score if self.is_first else score_values(self.channel_mean(), self.basis)

    def pooled(self, patches: Float[Tensor, "batch patches"]) -> Float[Tensor, "batch tokens"]:
        """Mean of a score per patch over the patches that each token owns."""
        return patches if self.is_first else pool_over_patches(patches, self.source_map, self.tokens.shape[1])


def require_values(values: Tensor | None) -> Tensor:
    """`values`, which the block computed because the strategy's `needs_attention` is set."""
    if values is None:
        raise TypeError("a strategy that reads attention or importance must set needs_attention")
    return values


def pick(values: Tensor, index: Int[Tensor, "batch chosen"]) -> Tensor:
    """`values` [batch, tokens, …] at `index`; a gather, so only for strategies that need not export."""
    return values[torch.arange(len(values), device=values.device)[:, None], index]
