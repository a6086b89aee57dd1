"""`python -m training.evaluate`: what a checkpoint scores, costs and sees."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, PositiveInt

from model import ModelConfig
from model.config import SCORE_NAMES, ScoreName
from model.errors import ConfigError
from training import cli, plots
from training.data.dataset import Source
from training.measure import records
from training.measure.bench import ARCHITECTURE, Bench, BenchConfig
from training.measure.confusion import confusion, worst_pairs
from training.measure.scores import BINS, scores

PICTURED = ("bicycle", "dolphin", "rocket", "fox", "sunflower", "castle", "tank", "cloud")
"""Classes of CIFAR-100 that are drawn unless others are asked for."""


class EvaluateConfig(BenchConfig):
    """What is measured and drawn."""

    freqmerge: bool = Field(True, description="merge as configured; --no_freqmerge is the plain ViT")
    benchmark: bool = Field(False, description="measure images/s beside the plain ViT")
    batch_sizes: tuple[PositiveInt, ...] = Field(
        (1, 8, 32, 64, 256), min_length=1, description="batches that are timed"
    )
    visualize: bool = Field(False, description="draw a frequency score of some test images")
    score: ScoreName = Field(
        "lfgm", description="which score --visualize draws: of the channel mean (lfgm) or of all channels (energy)"
    )
    confusion: bool = Field(False, description="draw the confusion matrix")
    pictured: tuple[str, ...] = Field(
        (),
        description=f"classes whose first test image is drawn by --visualize; none takes {', '.join(PICTURED)} where "
        f"those are classes, else the first {len(PICTURED)}",
    )

    @property
    def heatmaps_path(self) -> Path:
        """Images, their frequency score, and both."""
        return self.output_dir / "visualizations" / f"{self.score}_heatmaps.png"

    @property
    def confusion_path(self) -> Path:
        """Confusion matrix."""
        return self.output_dir / "visualizations" / "confusion_matrix.png"


def evaluate(config: EvaluateConfig, changes: dict[str, Any], command: str) -> dict[str, Any]:
    """Scores the checkpoint on the test images, draws what was asked for, and writes and returns the record.

    `changes` replace fields of the checkpoint's model config. Raises `CheckpointError`, `ConfigError`, `DataError` and
    `DivergedError`.
    """
    bench = Bench(config, **({**changes} if config.freqmerge else {**changes, "keep_rate": 1.0}))
    model_config = bench.checkpoint.model.config
    manifest = bench.checkpoint.manifest
    pictured = _pictured(config, bench.source)
    logits = bench.logits(model_config)
    accuracy, cost = scores(logits, bench.images.labels), bench.cost(model_config)
    counts = confusion(bench.images.labels, logits.argmax(dim=1), len(manifest.class_names))
    result = {
        **bench.origin(),
        "config": model_config.model_dump(mode="json"),
        "seed": 0,
        **accuracy._asdict(),
        "calibration_bins": BINS,
        **cost._asdict(),
        "worst_pairs": [pair._asdict() for pair in worst_pairs(counts, manifest.class_names)],
        "throughput": _throughput(bench, model_config) if config.benchmark else [],
    }
    records.add(
        "evaluate", command, result, bench.device, bench.results, same=("digest", "config", "precision", "images")
    )
    if config.visualize:
        _draw_heatmaps(bench, model_config, pictured, config)
    if config.confusion:
        plots.confusion_matrix(counts, manifest.class_names, manifest.superclasses, config.confusion_path)
    return result


def _throughput(bench: Bench, model_config: ModelConfig) -> list[dict[str, Any]]:
    assert isinstance(bench.config, EvaluateConfig)
    rows = []
    for size in bench.config.batch_sizes:
        pair = bench.rates({"plain": model_config.replace(keep_rate=1.0), "own": model_config}, size)
        rows.append(
            {
                "batch_size": size,
                "repeats": bench.config.repeats,
                **pair["own"]._asdict(),
                "plain_images_per_s": pair["plain"].images_per_s,
            }
        )
    return rows


def _pictured(config: EvaluateConfig, source: Source) -> Sequence[str]:
    """The classes to draw; raises `ConfigError` for one that is not among theirs."""
    names = source.classes.names
    if unknown := [name for name in config.pictured if name not in names]:
        raise ConfigError(f"pictured: expected classes of {source.name}, without {', '.join(unknown)}")
    if config.pictured:
        return config.pictured
    return PICTURED if set(PICTURED) <= set(names) else names[: len(PICTURED)]


@torch.inference_mode()
def _draw_heatmaps(bench: Bench, model_config: ModelConfig, pictured: Sequence[str], config: EvaluateConfig) -> None:
    labels, names = bench.images.labels.tolist(), bench.checkpoint.manifest.class_names
    present = [name for name in pictured if names.index(name) in labels]
    chosen = bench.images.take(torch.tensor([labels.index(names.index(name)) for name in present]))
    model = bench.model(model_config)
    output = model(bench.stage(chosen.pixels.to(bench.device)))
    score = output.frequency_scores[:, SCORE_NAMES.index(config.score)].float().cpu().unflatten(1, model.grid)
    plots.heatmaps(chosen.pixels.numpy(), score.numpy(), present, config.heatmaps_path, config.score)


def report(result: dict[str, Any]) -> str:
    """The record as text for people."""
    lines = [
        f"{result['checkpoint']}, {result['images']:,} test images, {result['precision']}",
        f"top-1                 {result['top1']:8.2%}",
        f"top-5                 {result['top5']:8.2%}",
        f"NLL                   {result['loss']:8.4f} nats",
        f"calibration error     {result['calibration_error']:8.2%} ({result['calibration_bins']} bins)",
        f"parameters            {result['parameters'] / 1e6:8.2f} M",
        f'GMACs                 {result["macs"] / 1e9:8.3f} (the seed\'s "GFLOPs")',
        f"patch tokens left     {' → '.join(str(count) for count in dict.fromkeys(result['schedule']))}",
    ]
    lines += [
        f"images/s, batch {row['batch_size']:>3}   {row['images_per_s']:8.1f} ({row['quartiles'][0]:.1f} to "
        f"{row['quartiles'][1]:.1f}), {row['speed_up']:.2f} times the plain ViT"
        for row in result["throughput"]
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the evaluation."""
    parsed = cli.parser(
        "python -m training.evaluate",
        "Score, time and picture a checkpoint on the test images.",
        EvaluateConfig,
        ModelConfig,
        without=ARCHITECTURE,
    ).parse_args(arguments)
    config = EvaluateConfig(**cli.given(EvaluateConfig, parsed))
    command = cli.command("training.evaluate", arguments)
    result = evaluate(config, cli.given(ModelConfig, parsed), command)
    print(report(result))
    drawn = [(config.visualize, config.heatmaps_path), (config.confusion, config.confusion_path)]
    for path in (path for wanted, path in drawn if wanted):
        print(f"drawn: {path}")
    print(f"recorded: {config.results / 'evaluate.jsonl'}")


if __name__ == "__main__":
    cli.run(main)
