"""`python -m training.gpu`: what merging, compiling and half precision give together on a GPU, in one run.

The plain model, ToMe at its best for FreqMerge's cost and FreqMerge run eagerly and compiled, in every precision that
is asked for, from uint8 images to host arrays. All take turns, and what counts is the median of the ratios.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt

from model import ModelConfig
from model.checkpoint import load_checkpoint, read_manifest
from model.engines.choice import create_engine
from model.engines.device import pick_device
from model.engines.engine import Engine, Precision
from model.engines.torch_engine import UNLIMITED
from model.manifest import default_checkpoint_path
from model.speed import rate, seconds
from training import cli
from training.measure import fitting, records
from training.studies.gpu import FREQMERGE, NAME, PLAIN, TOME, Runner, page

Model = Literal["plain", "tome", "freqmerge"]
NAMES: dict[Model, str] = {"plain": PLAIN, "tome": TOME, "freqmerge": FREQMERGE}


class GpuConfig(records.RecordConfig):
    """Which checkpoint is run, in which ways, and how often."""

    ckpt: Path | None = Field(None, description="checkpoint to run; none takes the one that ships")
    models: tuple[Model, ...] = Field(
        ("plain", "tome", "freqmerge"), min_length=1, description="what is run; the first is what others are held to"
    )
    engines: tuple[Literal["eager", "inductor"], ...] = Field(
        ("eager", "inductor"), min_length=1, description="engines that run it"
    )
    precisions: tuple[Precision, ...] = Field(("fp16", "bf16"), min_length=1, description="numbers of the backbone")
    batch_sizes: tuple[PositiveInt, ...] = Field((1, 8, 64, 256), min_length=1, description="images per batch")
    repeats: int = Field(31, ge=3, description="timed batches per runner and batch size")
    warm_up: int = Field(5, ge=3, description="batches before timing; compiled ones are recorded in the first three")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    threads: int = Field(0, ge=0, description="CPU threads of torch; 0 leaves torch's choice")


def measure(config: GpuConfig) -> list[dict[str, Any]]:
    """One result per runner and batch size: images/s, and how they compare with the first model run alike.

    Raises `EngineError`, and `BudgetError` where ToMe cannot be brought to FreqMerge's cost.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    path = config.ckpt or default_checkpoint_path()
    manifest = read_manifest(path)
    engines = dict(_engines(config, path))
    images = np.random.default_rng(0).integers(
        0, 256, (max(config.batch_sizes), 3, *2 * (manifest.preprocess.native_size,)), dtype=np.uint8
    )
    first = NAMES[config.models[0]]
    return [
        {"checkpoint": manifest.name, "digest": manifest.digest, **row}
        for size in config.batch_sizes
        for row in _timed(config, engines, images[:size], first)
    ]


def _engines(config: GpuConfig, path: Path) -> Iterator[tuple[Runner, tuple[Engine, int]]]:
    """What runs, each with the multiply-accumulates of one image."""
    for model in dict.fromkeys(config.models):
        changes = _changes(path, model, pick_device(config.device))
        counted = load_checkpoint(path, **changes).model
        macs = fitting.cost(counted.vit, counted.config)
        for precision in dict.fromkeys(config.precisions):
            for kind in dict.fromkeys(config.engines):
                checkpoint = load_checkpoint(path, **changes)
                engine = create_engine(checkpoint, kind, config.device, max(config.batch_sizes), precision=precision)
                yield Runner(NAMES[model], kind, precision), (engine, macs)


def _changes(path: Path, model: Model, device: torch.device) -> dict[str, Any]:
    """Fields of the checkpoint's model config that make it this model."""
    if model == "plain":
        return {"keep_rate": 1.0}
    if model == "freqmerge":
        return {}
    checkpoint = load_checkpoint(path)
    own: ModelConfig = checkpoint.model.config
    vit = checkpoint.model.vit.to(device)
    fitted = fitting.fit_counts(vit, own.replace(scoring="none"), fitting.cost(vit, own)).config
    return {name: getattr(fitted, name) for name in ("scoring", "merge_layers", "merge_counts")}


def _timed(
    config: GpuConfig, engines: Mapping[Runner, tuple[Engine, int]], images: np.ndarray, first: str
) -> Iterator[dict[str, Any]]:
    calls = {runner: _call(engine, images) for runner, (engine, _) in engines.items()}
    with torch._dynamo.config.patch(UNLIMITED):
        times = seconds(calls, config.repeats, config.warm_up, pick_device(config.device))
    for runner, own in times.items():
        reference = runner._replace(model=first)
        throughput = rate(own, times[reference], len(images))
        yield {
            **runner._asdict(),
            "batch_size": len(images),
            "macs": engines[runner][1],
            "images_per_s": throughput.images_per_s,
            "images_per_s_quartiles": list(throughput.quartiles),
            "gain": throughput.speed_up,
            "gain_by_macs": engines[reference][1] / engines[runner][1],
            "repeats": config.repeats,
        }


def _call(engine: Engine, images: np.ndarray) -> Callable[[], Any]:
    return lambda: engine.run(images)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the comparison."""
    parsed = cli.parser(
        "python -m training.gpu", "Time plain and merging models on a GPU, eager and compiled.", GpuConfig
    ).parse_args(arguments)
    config = GpuConfig(**cli.given(GpuConfig, parsed))
    results = measure(config)
    device = pick_device(config.device)
    path = records.write_for_machine(NAME, cli.command("training.gpu", arguments), results, device, config.results)
    print(page(records.read(NAME, path.parent)))
    print(f"recorded: {path}")


if __name__ == "__main__":
    cli.run(main)
