"""Tiny real models for the tests."""

from __future__ import annotations

from typing import Any

import torch

from model import FreqMergeViT, ModelConfig, build

TINY = ModelConfig(
    backbone="vit_tiny_patch16_224",
    backbone_args={"patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2},
    image_size=48,
    merge_layers=(1, 2),
)
"""36 patches on a 6x6 grid, four blocks of which two merge: 36 → 25 → 18."""


def tiny(**changes: Any) -> FreqMergeViT:
    """A tiny model in evaluation mode with reproducible random weights."""
    config = TINY.replace(**changes)
    torch.manual_seed(0)
    model = build(config).eval()
    with torch.no_grad():  # timm starts close to zero; wider weights make every token matter
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model


def images(count: int, side: int = 48, seed: int = 1) -> torch.Tensor:
    """Normalised random images."""
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))
