"""Chance as a baseline: random pruning, and random merging, which every way of matching has to beat."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from model.merging.matching import match
from model.merging.strategies.view import View


def prune_at_random(
    view: View, score: Float[Tensor, "batch tokens"] | None, kept_count: int
) -> Int[Tensor, "batch tokens"]:
    """A random subset stays, in order; the others are dropped (-1). Draws from torch's global generator."""
    batch, tokens, _ = view.tokens.shape
    draw = torch.rand(batch, tokens, device=view.tokens.device)
    position = torch.arange(tokens, device=view.tokens.device)
    stays = (draw.topk(kept_count, dim=1).indices[:, :, None] == position).any(dim=1)
    return torch.where(stays, torch.cumsum(stays.int(), dim=1) - 1, -1)


def merge_at_random(
    view: View, score: Float[Tensor, "batch tokens"] | None, kept_count: int
) -> Int[Tensor, "batch tokens"]:
    """Sources merge into destinations as ToMe's do, but by lot. Draws from torch's global generator."""
    batch, tokens, _ = view.tokens.shape
    return match(torch.rand(batch, tokens // 2, (tokens + 1) // 2, device=view.tokens.device), tokens - kept_count)
