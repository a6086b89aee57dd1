"""`python -m training.timing`: MACs, parameters and throughput of the plain ViT and FreqMerge, in one run.

All models of a batch size are timed in turns, so that whatever else the machine does hits them alike; what counts
is the median of the ratios.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import Field, PositiveInt
from torch import nn

from model import ModelConfig, build
from model.config import Frozen
from model.engine import pick_device
from training import cli, records
from training.macs import count_macs, count_parameters

PLAIN, MERGED = "plain timm ViT", "FreqMerge"


class TimingConfig(Frozen):
    """What is timed, how often, and where the results go."""

    batch_sizes: tuple[PositiveInt, ...] = Field((1, 8, 32), min_length=1, description="images per forward pass")
    repeats: int = Field(15, ge=3, description="timed passes per model and batch size")
    warm_up: int = Field(3, ge=1, description="passes before timing")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    threads: int = Field(0, ge=0, description="CPU threads of torch; 0 leaves torch's choice")
    results: Path = Field(records.RESULTS, description="folder of the result files")


def seconds(
    calls: Mapping[str, Callable[[], Any]], repeats: int, warm_up: int, device: torch.device
) -> dict[str, list[float]]:
    """Wall-clock seconds of each call, `repeats` times, the calls taking turns."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warm_up + repeats):
        for name, call in calls.items():
            _wait(device)
            start = time.perf_counter()
            call()
            _wait(device)
            if turn >= warm_up:
                found[name].append(time.perf_counter() - start)
    return found


class Rate(NamedTuple):
    """Throughput of one model."""

    images_per_s: float
    """Median."""
    quartiles: tuple[float, float]
    speed_up: float
    """Median of the ratios to the first model, pass by pass."""


@torch.inference_mode()
def rates(
    models: Mapping[str, nn.Module], images: torch.Tensor, repeats: int, warm_up: int, device: torch.device
) -> dict[str, Rate]:
    """Throughput of every model on one batch of normalised images, timed in turns."""
    times = seconds({name: _call(model, images) for name, model in models.items()}, repeats, warm_up, device)
    first = next(iter(times.values()))
    found = {}
    for name, own in times.items():
        per_s = [len(images) / one for one in own]
        low, _, high = statistics.quantiles(per_s, n=4)
        ratios = [other / one for other, one in zip(first, own, strict=True)]
        found[name] = Rate(statistics.median(per_s), (low, high), statistics.median(ratios))
    return found


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
        found = rates(models, images, config.repeats, config.warm_up, device)
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
                    "images_per_s": found[name].images_per_s,
                    "images_per_s_quartiles": list(found[name].quartiles),
                    "speed_up": found[name].speed_up,
                    "repeats": config.repeats,
                }
            )
    return results


def _call(model: nn.Module, images: torch.Tensor) -> Callable[[], Any]:
    return lambda: model(images)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
    print(f"recorded: {path}; `python -m training.tables` writes the tables from it")


if __name__ == "__main__":
    cli.run(main)
