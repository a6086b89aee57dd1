"""Throughput of several models, timed in turns: whatever else the machine does then hits them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

Key = TypeVar("Key")


def seconds(
    calls: Mapping[Key, Callable[[], Any]], repeats: int, warm_up: int, device: torch.device
) -> dict[Key, list[float]]:
    """Wall-clock seconds of each call, `repeats` times, the calls taking turns."""
    timings: dict[Key, list[float]] = {name: [] for name in calls}
    for turn in range(warm_up + repeats):
        for name, call in calls.items():
            _wait(device)
            start = time.perf_counter()
            call()
            _wait(device)
            if turn >= warm_up:
                timings[name].append(time.perf_counter() - start)
    return timings


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
    return {name: rate(own, first, len(images)) for name, own in times.items()}


def rate(own: Sequence[float], first: Sequence[float], images: int) -> Rate:
    """Throughput from the seconds of each pass of so many images, beside those of the first model."""
    per_s = [images / second for second in own]
    low, _, high = statistics.quantiles(per_s, n=4)
    return Rate(statistics.median(per_s), (low, high), ratio(first, own))


def ratio(slower: Sequence[float], faster: Sequence[float]) -> float:
    """How many times as fast the second is: the median of the ratios, pass by pass."""
    return statistics.median(other / second for other, second in zip(slower, faster, strict=True))


def _call(model: nn.Module, images: torch.Tensor) -> Callable[[], Any]:
    return lambda: model(images)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
