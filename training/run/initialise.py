"""Mimetic initialisation: attention that starts out like that of a trained ViT.

Trockman & Kolter, "Mimetic Initialization of Self-Attention Layers" (ICML 2023), section 4: W_Q W_Kᵀ near
0.7 (Z + I), W_V W_proj near 0.4 (Z - I), with Z Gaussian of variance 1/dim, and sinusoidal positions.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from model.errors import BackboneError

QUERY_KEY = 0.7
VALUE_PROJECTION = 0.4
POSITION_SCALE = 0.25


@torch.no_grad()
def mimetic(vit: Any) -> None:
    """Overwrites attention weights and position embeddings of a freshly built timm ViT, in place.

    Raises `BackboneError` for another family, whose queries and keys turn with their positions.
    """
    if not issubclass(type(vit), VisionTransformer):
        raise BackboneError(f"init mimetic: expected a timm VisionTransformer, found {type(vit).__name__}; init timm")
    dim = vit.embed_dim
    for block in vit.blocks:
        attn, width = block.attn, block.attn.head_dim
        query, key, value = attn.qkv.weight.chunk(3)
        for head in range(attn.num_heads):
            rows = slice(head * width, (head + 1) * width)
            left, right = _factors(QUERY_KEY * (_noise(dim) + torch.eye(dim)), width)
            query[rows], key[rows] = left.T, right
        left, right = _factors(VALUE_PROJECTION * (_noise(dim) - torch.eye(dim)), dim)
        value.copy_(left.T)  # Linear computes x Wᵀ
        attn.proj.weight.copy_(right.T)
    positions = vit.pos_embed[:, vit.pos_embed.shape[1] - vit.patch_embed.num_patches :]
    positions.copy_(POSITION_SCALE * sinusoids(dim, tuple(vit.patch_embed.grid_size)))


def sinusoids(dim: int, grid: tuple[int, int]) -> Tensor:
    """Sine and cosine of row and column at dim / 4 wavelengths each, [patches, dim]."""
    row, column = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    frequency = 10_000.0 ** -(torch.arange(dim // 4) * 4 / dim)
    angles = [position.flatten()[:, None] * frequency for position in (row, column)]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)


def _noise(dim: int) -> Tensor:
    return torch.randn(dim, dim).div(dim**0.5)


def _factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best rank-limited factors A [dim, rank] and B [rank, dim] with A B close to `matrix`."""
    u, s, vh = torch.linalg.svd(matrix)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * vh[:rank]
