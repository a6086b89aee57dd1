"""`python -m training.timing`: MACs, parameters and throughput of the plain ViT and FreqMerge, in one run.

All models of a batch size are timed in turns, so that whatever else the machine does hits them alike; what counts
is the median of the ratios.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field, PositiveInt
from torch import nn

from model import ModelConfig, build
from model.engines.device import pick_device
from model.macs import count_macs, count_parameters
from model.speed import rates
from training import cli
from training.measure import records

PLAIN, MERGED = "plain timm ViT", "FreqMerge"


class TimingConfig(records.RecordConfig):
    """What is timed, how often, and where the results go."""

    batch_sizes: tuple[PositiveInt, ...] = Field((1, 8, 32), min_length=1, description="images per forward pass")
    repeats: int = Field(15, ge=3, description="timed passes per model and batch size")
    warm_up: int = Field(3, ge=1, description="passes before timing")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    threads: int = Field(0, ge=0, description="CPU threads of torch; 0 leaves torch's choice")


def measure(config: TimingConfig, model_config: ModelConfig) -> list[dict[str, Any]]:
    """One result per model and batch size: images/s (median, quartiles) and speed-up over the plain ViT."""
    if config.threads:
        torch.set_num_threads(config.threads)
    device = pick_device(config.device)
    merged = build(model_config).eval().to(device)
    models: dict[str, nn.Module] = {PLAIN: merged.vit, MERGED: merged}
    results = []
    for size in config.batch_sizes:
        images = torch.randn(size, 3, model_config.image_size, model_config.image_size, device=device)
        speeds = rates(models, images, config.repeats, config.warm_up, device)
        for name, model in models.items():
            results.append(
                {
                    "model": name,
                    "backbone": model_config.backbone,
                    "config": model_config.model_dump(mode="json"),
                    "schedule": merged.schedule if name == MERGED else [merged.grid[0] * merged.grid[1]],
                    "batch_size": size,
                    "macs": count_macs(model, model_config.image_size),
                    "parameters": count_parameters(model),
                    "images_per_s": speeds[name].images_per_s,
                    "images_per_s_quartiles": list(speeds[name].quartiles),
                    "speed_up": speeds[name].speed_up,
                    "repeats": config.repeats,
                }
            )
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the timing."""
    parsed = cli.parser(
        "python -m training.timing", "Time FreqMerge against the plain ViT.", TimingConfig, ModelConfig
    ).parse_args(arguments)
    config = TimingConfig(**cli.given(TimingConfig, parsed))
    results = measure(config, ModelConfig(**cli.given(ModelConfig, parsed)))
    command = cli.command("training.timing", arguments)
    path = records.write("timing", command, results, pick_device(config.device), config.results)
    for result in results:
        print(
            f"{result['model']:>16}  batch {result['batch_size']:>3}  {result['macs'] / 1e9:.2f} GMACs  "
            f"{result['parameters'] / 1e6:.1f} M  {result['images_per_s']:8.1f} images/s  {result['speed_up']:.2f}x"
        )
    print(f"recorded: {path}")


if __name__ == "__main__":
    cli.run(main)
