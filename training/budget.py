"""`python -m training.budget`: multiply-accumulates of the settings of the seed's table on its model, ViT-Small/16."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveInt

from model import FreqMergeViT, ModelConfig, build
from model.macs import count_macs, count_parameters
from training import cli
from training.dynamicvit.model import DynamicConfig, DynamicViT
from training.measure import records
from training.measure.fitting import cost


class CountConfig(records.RecordConfig):
    """What is counted, and where the counts go."""

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
    counts = [
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
        counts.append(
            {
                "row": "dynamicvit_half" if rho == 0.5 else f"dynamicvit_{rho:g}",
                "label": f"DynamicViT with ρ = {rho:g}",
                "config": {**model_config.replace(keep_rate=1.0).model_dump(mode="json"), "rho": rho},
                "macs": count_macs(dynamic, model_config.image_size),
                "parameters": count_parameters(dynamic),
            }
        )
    return counts


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the counting."""
    parsed = cli.parser(
        "python -m training.budget", "Count the settings of the seed's table.", CountConfig, ModelConfig
    ).parse_args(arguments)
    config = CountConfig(**cli.given(CountConfig, parsed))
    counts = count_settings(config, ModelConfig(**cli.given(ModelConfig, parsed)))
    command = cli.command("training.budget", arguments)
    path = records.write("counts", command, counts, torch.device("cpu"), config.results)
    for entry in counts:
        print(f"{entry['macs'] / 1e9:6.3f} GMACs  {entry['parameters'] / 1e6:6.2f} M  {entry['label']}")
    print(f"recorded: {path}")


if __name__ == "__main__":
    cli.run(main)
