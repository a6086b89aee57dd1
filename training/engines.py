"""`python -m training.engines`: throughput of every engine beside eager on this machine, in one run.

All engines of a model and batch size are timed in turns, from uint8 images to host arrays, as the service calls them;
what counts is the median of the ratios.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, PositiveInt, field_validator

from model import ModelConfig, build, save_checkpoint
from model.checkpoint import load_checkpoint
from model.engines.choice import create_engine
from model.engines.device import pick_device
from model.engines.engine import KINDS, Engine
from model.manifest import default_checkpoint_path
from model.speed import rate, seconds
from training import cli
from training.errors import TrainingError
from training.measure import records

REFERENCE = "eager"
DEFAULT_MODEL = "default"
SHIPPED = "shipped"


class EnginesConfig(records.RecordConfig):
    """Which engines run which models, how often, and where the results go."""

    engines: tuple[str, ...] = Field(("openvino",), min_length=1, description="engines to hold against eager")
    models: tuple[str, ...] = Field(
        (SHIPPED, DEFAULT_MODEL),
        min_length=1,
        description="checkpoint files; `shipped`; `default` is the ViT-Small of a model config that sets nothing",
    )
    batch_sizes: tuple[PositiveInt, ...] = Field((1, 8, 32), min_length=1, description="images per batch")
    repeats: int = Field(15, ge=3, description="timed batches per engine, model and batch size")
    warm_up: int = Field(2, ge=1, description="batches before timing")
    precision: str = Field("auto", description="auto, fp32, fp16 or bf16")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    threads: int = Field(0, ge=0, description="CPU threads; 0 leaves torch's choice")

    @field_validator("engines")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in KINDS or name == REFERENCE:
                others = ", ".join(kind for kind in KINDS if kind != REFERENCE)
                raise ValueError(f"expected some of {others}, found {name!r}")
        return names


def measure(config: EnginesConfig) -> list[dict[str, Any]]:
    """One result per model, batch size and engine; raises `TrainingError` where an engine gave way to another."""
    if config.threads:
        torch.set_num_threads(config.threads)
    results = []
    for name in config.models:
        with _checkpoint(name) as path:
            engines, starts = _started(config, path)
            for size in config.batch_sizes:
                results += [{"model": path.stem, **row} for row in _timed(config, engines, starts, size)]
    return results


def _started(config: EnginesConfig, path: Path) -> tuple[dict[str, Engine], dict[str, float]]:
    """The engines, warm, and the seconds that each took to be so."""
    engines, starts = {}, {}
    for kind in (REFERENCE, *config.engines):
        start = time.perf_counter()
        engine = create_engine(
            load_checkpoint(path), kind, config.device, max(config.batch_sizes), precision=config.precision
        )
        engine.warm_up()
        engines[kind], starts[kind] = engine, time.perf_counter() - start
        if engine.kind != kind:
            raise TrainingError(f"engines: expected {kind} to run here, found {engine.reason}; leave it out")
    return engines, starts


def _timed(
    config: EnginesConfig, engines: dict[str, Engine], starts: dict[str, float], size: int
) -> Iterator[dict[str, Any]]:
    side = engines[REFERENCE].native_size
    images = np.random.default_rng(size).integers(0, 256, (size, 3, side, side), dtype=np.uint8)
    calls = {kind: _call(engine, images) for kind, engine in engines.items()}
    times = seconds(calls, config.repeats, config.warm_up, pick_device(config.device))
    for kind, figures in summary(times, size).items():
        yield {
            "engine": kind,
            "precision": engines[kind].precision,
            "batch_size": size,
            **figures,
            "start_s": starts[kind],
            "repeats": config.repeats,
        }


def summary(times: Mapping[str, Sequence[float]], size: int) -> dict[str, dict[str, Any]]:
    """Images/s of every engine, median and quartiles, and its speed-up over eager: the median of the ratios."""
    figures = {}
    for kind, own in times.items():
        throughput = rate(own, times[REFERENCE], size)
        figures[kind] = {
            "images_per_s": throughput.images_per_s,
            "images_per_s_quartiles": list(throughput.quartiles),
            "speed_up": throughput.speed_up,
        }
    return figures


def _call(engine: Engine, images: np.ndarray) -> Callable[[], Any]:
    return lambda: engine.run(images)


@contextmanager
def _checkpoint(name: str) -> Iterator[Path]:
    """The file of the model of this name; a `default` one is gone afterwards."""
    if name == SHIPPED:
        yield default_checkpoint_path()
    elif name == DEFAULT_MODEL:
        config = ModelConfig()
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            path = Path(folder) / f"{config.backbone}.safetensors"
            save_checkpoint(path, build(config))
            yield path
    else:
        yield Path(name)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the comparison."""
    parsed = cli.parser(
        "python -m training.engines", "Time every engine against eager on this machine.", EnginesConfig
    ).parse_args(arguments)
    config = EnginesConfig(**cli.given(EnginesConfig, parsed))
    results = measure(config)
    path = records.write(
        "engines", cli.command("training.engines", arguments), results, pick_device(config.device), config.results
    )
    for result in results:
        print(
            f"{result['model']:>24}  {result['engine']:>9} {result['precision']}  batch {result['batch_size']:>3}  "
            f"{result['images_per_s']:8.1f} images/s  {result['speed_up']:.2f}x  ready after {result['start_s']:.1f} s"
        )
    print(f"recorded: {path}")


if __name__ == "__main__":
    cli.run(main)
