"""`python -m training.by_picture`: whether a number known before anything merges tells which pictures bear more of it.

Every picture gets one of several schedules, and all pictures together cost on average what one schedule costs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import Field, field_validator

from model import ModelConfig, files
from model.config import Scoring
from model.merging.strategies import STRATEGIES
from training import cli
from training.measure import picture_statistics, records
from training.measure.bench import ARCHITECTURE, Bench, BenchConfig
from training.measure.picture_statistics import STATISTICS
from training.studies import picture_report
from training.studies.divisions import Scored, Seen, divide

NAME = "by_picture"
"""Of the record."""
SCHEDULES = ("keep_rate", "merge_counts", "scoring")
"""Fields of the model config that the study sets itself."""


class ByPictureConfig(BenchConfig):
    """Between which schedules the pictures are divided, and how."""

    keep_rates: tuple[Annotated[float, Field(ge=0.5, le=1)], ...] = Field(
        (0.85, 0.7, 0.6, 0.5), description="keep rates of the schedules, at least three"
    )
    strategies: tuple[Scoring, ...] = Field(("none",), description="strategies that merge the tokens")
    seeds: int = Field(5, ge=1, description="draws of the choice at random")
    thresholds_from: Literal["test", "train"] = Field(
        "test",
        description="images whose statistics, without labels, set the thresholds: test (their own ranks, so that the "
        "mean cost is the wanted one) or train (known beforehand, as a service would have them)",
    )
    threshold_images: int = Field(2000, ge=1, description="training images for the thresholds, drawn by a fixed seed")

    @field_validator("keep_rates")
    @classmethod
    def _several(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(rates)) < 3 or len(set(rates)) < len(rates):
            raise ValueError("expected at least three different rates")
        return rates

    @field_validator("strategies")
    @classmethod
    def _some(cls, names: tuple[Scoring, ...]) -> tuple[Scoring, ...]:
        if not names:
            raise ValueError("expected at least one")
        return names


def measure(config: ByPictureConfig, changes: dict[str, Any], command: str) -> list[dict[str, Any]]:
    """Scores every schedule once, divides the pictures in every way, and writes and returns the entries.

    `changes` replace fields of the checkpoint's model config. Raises what `training.evaluate.evaluate` raises,
    `ConfigError` for a checkpoint whose block 0 merges, and `BudgetError` for schedules that cost the same.
    """
    bench = Bench(config, **changes)
    base = bench.checkpoint.model.config.replace(merge_counts=())
    seen = _seen(bench, base)
    others = _seen_in_training(bench, base, config) if config.thresholds_from == "train" else None
    entries, answers = [], {}
    for strategy in dict.fromkeys(config.strategies):
        scored = _scored(bench, base.replace(scoring=strategy), sorted(config.keep_rates))
        answers[strategy] = scored.right
        rows = divide(scored, seen, others, config.seeds)
        facts = {"study": NAME, "thresholds_from": config.thresholds_from, **bench.origin()}
        entries += [facts | row for row in rows]
    path = records.write(NAME, command, entries, bench.device, bench.results)
    _publish(entries, seen, answers, config, command)
    print(f"recorded: {path}")
    return entries


def _scored(bench: Bench, base: ModelConfig, keep_rates: Sequence[float]) -> Scored:
    """Every schedule of a strategy on the test images; `keep_rates` rise."""
    configs = tuple(base.replace(keep_rate=rate) for rate in keep_rates)
    right = []
    for config in configs:
        right.append((bench.logits(config).argmax(dim=1) == bench.images.labels).numpy())
        line = f"{STRATEGIES[base.scoring].label}, keep rate {config.keep_rate:g}: top-1 {right[-1].mean():.2%}"
        print(f"{NAME}: {line}", file=sys.stderr)
    return Scored(base.scoring, configs, tuple(bench.cost(config) for config in configs), np.stack(right))


def _seen(bench: Bench, base: ModelConfig) -> Seen:
    return _columns(bench.read(base, picture_statistics.read))


def _seen_in_training(bench: Bench, base: ModelConfig, config: ByPictureConfig) -> Seen:
    images = bench.source.load("train", bench.checkpoint.manifest.preprocess.native_size)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return _columns(bench.read(base, picture_statistics.read, images.take(order[: config.threshold_images])))


def _columns(values: Float[torch.Tensor, "images statistics"]) -> Seen:
    return dict(zip(STATISTICS, values.double().T.numpy(), strict=True))


def _publish(
    entries: list[dict[str, Any]],
    seen: Seen,
    answers: dict[Scoring, Bool[np.ndarray, "schedules images"]],
    config: ByPictureConfig,
    command: str,
) -> None:
    logs = config.output_dir / "logs"
    table = picture_report.table_of(entries)
    table += "".join(f"\n{line}\n" for line in picture_report.findings(entries))
    files.write_text(logs / f"{NAME}.md", f"# Budgets by picture\n\n`{command}`\n\n{table}")
    arrays: dict[str, Any] = {"keep_rates": np.sort(config.keep_rates), **seen}
    arrays |= {f"right_{strategy}": right for strategy, right in answers.items()}
    with files.replacing(logs / f"{NAME}.npz") as temporary, temporary.open("wb") as opened:
        np.savez_compressed(opened, **arrays)
    print(f"\n{table}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the study."""
    parsed = cli.parser(
        "python -m training.by_picture",
        "Measure whether a number per picture tells which pictures bear more merging.",
        ByPictureConfig,
        ModelConfig,
        without=(*ARCHITECTURE, *SCHEDULES),
    ).parse_args(arguments)
    config = ByPictureConfig(**cli.given(ByPictureConfig, parsed))
    measure(config, cli.given(ModelConfig, parsed), cli.command("training.by_picture", arguments))


if __name__ == "__main__":
    cli.run(main)
