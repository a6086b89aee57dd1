"""Random pruning, the baseline that any score has to beat."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from model.strategies.view import View


def prune_at_random(view: View, score: Float[Tensor, "batch tokens"] | None, kept: int) -> Int[Tensor, "batch tokens"]:
    """A random subset stays, in order; the others are dropped (-1). Draws from torch's global generator."""
    batch, tokens, _ = view.tokens.shape
    draw = torch.rand(batch, tokens, device=view.tokens.device)
    position = torch.arange(tokens, device=view.tokens.device)
    stays = (draw.topk(kept, dim=1).indices[:, :, None] == position).any(dim=1)
    return torch.where(stays, torch.cumsum(stays.int(), dim=1) - 1, -1)
