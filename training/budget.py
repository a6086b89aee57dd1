"""Merging schedules for a wanted number of multiply-accumulates, so that methods are compared at the same cost.

`python -m training.budget` counts the settings of the seed's table on its own model, ViT-Small/16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field, PositiveInt

from model import FreqMergeViT, ModelConfig, build
from model.config import Frozen
from model.macs import count_macs, count_parameters
from training import cli
from training.dynamicvit.model import DynamicConfig, DynamicViT
from training.errors import BudgetError
from training.measure import records

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


class CountConfig(Frozen):
    """Where the counts go."""

    results: Path = Field(records.RESULTS, description="folder of the result files")
    tome_counts: tuple[PositiveInt, ...] = Field(
        (8, 10, 12, 13, 14, 16), description="ToMe's r, tokens merged in every block"
    )
    rhos: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (0.7, 0.6), description="DynamicViT's keep rates beside 0.5"
    )


def count_settings(config: CountConfig, model_config: ModelConfig) -> list[dict[str, Any]]:
    """Multiply-accumulates and parameters of the settings that the seed's table names, on a freshly built model."""
    vit = build(model_config).vit
    depth = len(vit.blocks)
    settings = {
        "plain": ("plain ViT", model_config.replace(keep_rate=1.0)),
        "lfgm": ("FreqMerge", model_config),
        "tome_half": (
            "ToMe with keep rate 0.5 on the seed's blocks",
            model_config.replace(scoring="none", keep_rate=0.5),
        ),
    }
    for count in config.tome_counts:
        changes = {"scoring": "none", "merge_layers": tuple(range(depth)), "merge_counts": (count,) * depth}
        settings[f"tome_{count}"] = f"ToMe with r = {count} in every block", model_config.replace(**changes)
    told = [
        {
            "row": name,
            "label": label,
            "config": setting.model_dump(mode="json"),
            "macs": cost(vit, setting),
            "parameters": count_parameters(vit),
        }
        for name, (label, setting) in settings.items()
    ]
    for rho in (0.5, *config.rhos):
        dynamic = DynamicViT(FreqMergeViT(vit, model_config), DynamicConfig(rho=rho))
        told.append(
            {
                "row": "dynamicvit_half" if rho == 0.5 else f"dynamicvit_{rho:g}",
                "label": f"DynamicViT with ρ = {rho:g}",
                "config": {**model_config.replace(keep_rate=1.0).model_dump(mode="json"), "rho": rho},
                "macs": count_macs(dynamic, model_config.image_size),
                "parameters": count_parameters(dynamic),
            }
        )
    return told


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the counting."""
    parsed = cli.parser(
        "python -m training.budget", "Count the settings of the seed's table.", CountConfig, ModelConfig
    ).parse_args(arguments)
    config = CountConfig(**cli.given(CountConfig, parsed))
    told = count_settings(config, ModelConfig(**cli.given(ModelConfig, parsed)))
    command = cli.command("training.budget", arguments)
    path = records.write("counts", command, told, torch.device("cpu"), config.results)
    for entry in told:
        print(f"{entry['macs'] / 1e9:6.3f} GMACs  {entry['parameters'] / 1e6:6.2f} M  {entry['label']}")
    print(f"recorded: {path}")


if __name__ == "__main__":
    cli.run(main)
