"""Merging schedules for a wanted number of multiply-accumulates, so that methods are compared at the same cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from model import FreqMergeViT, ModelConfig
from model.macs import count_macs
from training.errors import BudgetError

STEP = 1 / 1000
"""Resolution of a fitted keep rate."""


class Fit(NamedTuple):
    """A model config and the multiply-accumulates counted for it."""

    config: ModelConfig
    macs: int


def cost(vit: Any, config: ModelConfig) -> int:
    """Multiply-accumulates of one image, the merging included, counted on the model itself."""
    if not config.merges:
        return count_macs(vit, config.image_size)
    device = next(vit.parameters()).device
    return count_macs(FreqMergeViT(vit, config).to(device), config.image_size)


def fit_keep_rate(vit: Any, config: ModelConfig, macs: int, tolerance: float = 0.01) -> Fit:
    """The config with the keep rate whose cost is nearest to `macs`, in steps of 0.001, on its own merge layers.

    Raises `BudgetError` if the nearest is further off than `tolerance` (a share of `macs`): one merging block keeps
    at least half of its tokens.
    """

    def at(step: int) -> ModelConfig:
        return config.replace(keep_rate=1 - step * STEP, merge_counts=())

    return _nearest(vit, at, 1, 500, macs, tolerance)


def fit_counts(vit: Any, config: ModelConfig, macs: int, tolerance: float = 0.01) -> Fit:
    """The config that merges the same number of tokens in every block, its cost nearest to `macs`.

    That is the schedule that ToMe (Bolya et al., ICLR 2023) reports. Where a whole number per block is too coarse,
    the first blocks merge one token more. Raises `BudgetError` as `fit_keep_rate` does.
    """
    depth = len(vit.blocks)
    rate = config.keep_rate if config.merges else ModelConfig().keep_rate  # a rate of 1 would merge nothing

    def at(total: int) -> ModelConfig:
        counts = tuple(total // depth + (layer < total % depth) for layer in range(depth))
        layers = tuple(layer for layer in range(depth) if counts[layer])
        return config.replace(
            merge_layers=layers, merge_counts=tuple(count for count in counts if count), keep_rate=rate
        )

    most = depth * (vit.patch_embed.num_patches // 2)  # beyond what the last blocks have; the schedule caps them
    return _nearest(vit, at, 1, most, macs, tolerance)


def _nearest(
    vit: Any,
    at: Callable[[int], ModelConfig],
    low: int,
    high: int,
    macs: int,
    tolerance: float,
) -> Fit:
    """Bisection over a family of configs whose cost falls with its index."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(vit, at(middle)) > macs else (low, middle)
    best = min((Fit(at(index), cost(vit, at(index))) for index in (low, high)), key=lambda fit: abs(fit.macs - macs))
    if abs(best.macs - macs) > tolerance * macs:
        raise BudgetError(
            f"budget: expected {macs / 1e9:.4g} GMACs within {tolerance:.1%}, the nearest that {best.config.backbone} "
            f"reaches in this way is {best.macs / 1e9:.4g}; merge in other blocks, allow more or choose another budget"
        )
    return best
