"""`python -m training.ablation`: what each choice of FreqMerge is worth, on the same weights and the same images."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from model import ModelConfig, files
from training import cli, plots
from training.measure import records
from training.measure.bench import ARCHITECTURE, Bench, Cost
from training.measure.paired import compare, confirm, standard_error
from training.measure.scores import Scores, scores
from training.studies import reports, verdicts
from training.studies.plan import STUDIES, AblationConfig, Row, chosen


class Measured(NamedTuple):
    """What one config scored with one seed."""

    right: Bool[np.ndarray, " images"]
    scores: Scores


class Measurements:
    """Scores and costs of configs, each measured once however many studies ask."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self._measured: dict[tuple[str, int], Measured] = {}
        self._costs: dict[str, Cost] = {}

    def measured(self, config: ModelConfig, seed: int) -> Measured:
        """Right and wrong answers, and scores."""
        key = config.to_json(), seed
        if key not in self._measured:
            labels = self.bench.images.labels
            logits = self.bench.logits(config, seed)
            self._measured[key] = Measured((logits.argmax(dim=1) == labels).numpy(), scores(logits, labels))
        return self._measured[key]

    def right(self, row: Row) -> Bool[np.ndarray, "seeds images"]:
        """Which images the row gets right, one line per seed."""
        assert row.config is not None
        return np.stack([self.measured(row.config, seed).right for seed in range(row.seeds)])

    def cost(self, config: ModelConfig) -> Cost:
        """What the config costs."""
        key = config.to_json()
        if key not in self._costs:
            self._costs[key] = self.bench.cost(config)
        return self._costs[key]


def ablate(config: AblationConfig, changes: dict[str, Any], command: str) -> dict[str, list[dict[str, Any]]]:
    """Runs the chosen studies and writes records, tables and pictures after each; returns the entries by study.

    `changes` replace fields of the checkpoint's model config; a checkpoint that was trained without merging is measured
    at the default keep rate unless they say otherwise. Raises what `training.evaluate.evaluate` raises.
    """
    bench = Bench(config, **changes)
    base = bench.checkpoint.model.config
    if not base.merges:
        base = base.replace(keep_rate=ModelConfig().keep_rate)
    measurements = Measurements(bench)
    entries = {}
    for name in chosen(config.study):
        rows = STUDIES[name](bench.vit, base, config)
        entries[name] = run(name, rows, measurements, config)
        path = records.write(f"ablation_{name}", command, entries[name], bench.device, bench.results)
        _publish(name, entries[name], config, command)
        print(f"recorded: {path}")
    return entries


def run(study: str, rows: Sequence[Row], measurements: Measurements, config: AblationConfig) -> list[dict[str, Any]]:
    """One entry per row, in order: scores, cost, throughput, and the paired comparisons."""
    reachable = {row.name: row for row in rows if row.config is not None}
    for row in reachable.values():  # first, so that progress is told
        top1 = measurements.right(row).mean()
        print(f"{study}: {row.label}{_at(row)}: top-1 {top1:.2%}", file=sys.stderr)
    timed = _timed(reachable, measurements.bench, config)
    return [_entry(study, row, reachable, measurements) | timed.get(row.name, {}) for row in rows]


def _entry(study: str, row: Row, reachable: dict[str, Row], measurements: Measurements) -> dict[str, Any]:
    entry: dict[str, Any] = {"study": study, "row": row.name, "label": row.label, "budget": row.budget}
    entry |= measurements.bench.origin()
    if row.config is None:
        return entry | {"unreachable": row.problem}
    per_seed = [measurements.measured(row.config, seed).scores for seed in range(row.seeds)]
    top1 = [score.top1 for score in per_seed]
    right = measurements.right(row)
    references = {other: measurements.right(reachable[other]) for other in row.against if other in reachable}
    means = {field: statistics.mean(getattr(score, field) for score in per_seed) for field in Scores._fields}
    return entry | {
        "config": row.config.model_dump(mode="json"),
        "seeds": list(range(row.seeds)),
        **means,
        "top1_per_seed": top1,
        "standard_error": standard_error(means["top1"], len(measurements.bench.images)),
        **measurements.cost(row.config)._asdict(),
        "against": {other: compare(right, reference)._asdict() for other, reference in references.items()},
        "halves": {other: confirm(right, reference)._asdict() for other, reference in references.items()},
    }


def _timed(rows: dict[str, Row], bench: Bench, config: AblationConfig) -> dict[str, dict[str, Any]]:
    if not config.timing_batch:
        return {}
    configs = {name: row.config for name, row in rows.items() if row.config is not None}
    recipe = {"timing_batch": config.timing_batch, "repeats": config.repeats}
    return {name: {**rate._asdict(), **recipe} for name, rate in bench.rates(configs, config.timing_batch).items()}


def _publish(name: str, entries: list[dict[str, Any]], config: AblationConfig, command: str) -> None:
    logs = config.output_dir / "logs"
    sentences = verdicts.findings(entries) if name == "score" else reports.findings(entries)
    table = reports.study_table(entries) + "".join(f"\n{line}\n" for line in sentences)
    files.write_text(logs / f"ablation_{name}.md", f"# Study {name}\n\n`{command}`\n\n{table}")
    _merge_json(logs / "ablation_results.json", name, entries)
    plots.study(entries, config.output_dir / "visualizations" / f"ablation_{name}.png")
    print(f"\n{table}")


def _merge_json(path: Path, name: str, entries: list[dict[str, Any]]) -> None:
    """Replaces one study and keeps the others; a file that is no such JSON is started anew."""
    try:
        older = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        older = {}
    studies = {**(older if isinstance(older, dict) else {}), name: entries}
    files.write_text(path, json.dumps(studies, indent=1) + "\n")


def _at(row: Row) -> str:
    return "" if row.budget is None else f" at {row.budget:.0%} of the plain cost"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the ablation."""
    parsed = cli.parser(
        "python -m training.ablation",
        "Measure what each choice of FreqMerge is worth.",
        AblationConfig,
        ModelConfig,
        without=ARCHITECTURE,
    ).parse_args(arguments)
    config = AblationConfig(**cli.given(AblationConfig, parsed))
    command = cli.command("training.ablation", arguments)
    ablate(config, cli.given(ModelConfig, parsed), command)
    print(f"recorded: {config.output_dir / 'logs' / 'ablation_results.json'}")


if __name__ == "__main__":
    cli.run(main)
