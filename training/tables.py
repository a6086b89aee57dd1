"""`python -m training.tables`: the tables of README.md and docs/, made from the records and nothing else.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; the rest of the page is left alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from model import files
from model.checkpoint import load_checkpoint, read_manifest
from model.engines import portable
from model.manifest import default_checkpoint_path
from training import cli
from training.measure import records
from training.measure.fitting import cost
from training.studies import breakdown, gpu, picture_report, reports, runtimes, trained, verdicts
from training.studies.plan import STUDIES
from training.studies.reports import table

MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def timing(results: Path) -> str:
    """Plain ViT against FreqMerge: MACs, parameters, images/s per batch size."""
    entries = records.read("timing", results)
    sizes = sorted({entry["batch_size"] for entry in entries})
    head = ["model", "tokens", "GMACs", "parameters (M)", *(f"images/s, batch {size}" for size in sizes)]
    rows = [
        _timing_row([e for e in entries if e["model"] == name]) for name in dict.fromkeys(e["model"] for e in entries)
    ]
    return table(head, rows) + _source(entries[0])


def released(results: Path) -> str:
    """What the shipped checkpoint costs and scores, without merging, with ToMe's and its own, and in int8."""
    shipped = load_checkpoint(default_checkpoint_path())
    model, manifest, patches = shipped.model, shipped.manifest, math.prod(shipped.model.grid)
    merging = reports.schedule(patches, model.schedule)
    rows = []
    for label, key, tokens, config in (
        ("plain ViT", "plain_", f"{patches}", model.config.replace(keep_rate=1.0)),
        ("FreqMerge", "", merging, model.config),
    ):
        scores = (f"{100 * manifest.scores[f'{key}{name}']:.2f}" for name in ("top1", "top5"))
        rows.append([label, tokens, f"{cost(model.vit, config) / 1e9:.3g}", *scores])
    measured = [entry for entry in _any("ablation_scoring", results) if entry["digest"] == manifest.digest]
    gain = ""
    if compared := reports.tome(measured):
        rows.insert(1, ["ToMe (α = 0)", merging, rows[1][2], compared[0], ""])
        gain = f" FreqMerge against ToMe, points [95 %], p: {compared[1]}."
    artifact = portable.read(portable.path_beside(shipped.path))
    rows += [
        [f"FreqMerge, {precision}", merging, rows[-1][2], f"{100 * accuracy.top1:.2f}", ""]
        for precision, accuracy in artifact.accuracy.items()
    ]
    note = (
        f"\n`{manifest.name}`, all {manifest.training['test_images']:,} test images, float32 where no precision is "
        f"named;\nkeep rate {model.config.keep_rate:g}, α {model.config.alpha:g}.{gain}\n"
    )
    return table(["model", "tokens", "GMACs", "top-1 (%)", "top-5 (%)"], rows) + note


def checkpoint(results: Path) -> str:
    """As `released`, and the commands that led to the weights."""
    manifest = read_manifest(default_checkpoint_path())
    steps = [*commands(manifest.training), manifest.training["released_by"]]
    listing = "".join(f"{number}. `{step}`\n" for number, step in enumerate(steps, 1))
    return f"{released(results)}\nDigest `{manifest.digest[:12]}`. It was made by\n\n{listing}"


def methods(results: Path) -> str:
    """The seed's table of methods with the measured numbers, and what has to be said beside it."""
    entries, counts = _any("ablation_scoring", results), _any("counts", results)
    measured = {entry["digest"] for entry in entries}
    alphas = [entry for entry in _any("ablation_alpha", results) if entry["digest"] in measured]
    dynamicvit = [entry for entry in _any("dynamicvit", results) if entry["start"]["digest"] in measured]
    remarks = reports.remarks(entries, counts, alphas, dynamicvit)
    return reports.methods(entries, dynamicvit) + _below(remarks, entries, counts, dynamicvit)


def alpha(results: Path) -> str:
    """The seed's α sweep with the measured numbers."""
    entries = _any("ablation_alpha", results)
    return reports.alpha(entries) + _below(reports.findings(entries), entries)


def scoring(results: Path) -> str:
    """The seed's comparison of scores with the measured numbers, and the further baselines."""
    entries = _any("ablation_scoring", results)
    return reports.scoring(entries) + _below(reports.findings(entries), entries)


def parity(results: Path) -> str:
    """How nearly each engine answers as eager float32, one table per checkpoint, and what small precisions cost."""
    tables = [_parity(own) for own in records.by_checkpoint(_any("parity", results))]
    tables += [_precisions(own) for own in records.by_checkpoint(_any("precision", results))]
    return "\n".join(tables) or f"{reports.NOT_RUN}\n"


def _precisions(entries: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            f"openvino, {entry['precision']}",
            f"{100 * entry['top1']:.2f}",
            f"{100 * entry['reference_top1']:.2f}",
            "{:+.2f} [{:+.2f}, {:+.2f}]".format(*(100 * entry[field] for field in ("difference", "low", "high"))),
            "yes" if entry["difference"] >= -entry["bound"] else "no",
        ]
        for entry in entries
    ]
    first = entries[0]
    note = (
        f"\n`{first['command']}`, checkpoint `{first['checkpoint']}`, {first['images']:,} test images, paired, "
        f"{first['machine']['device']}; taken unasked is what costs at most {100 * first['bound']:g} points.\n"
    )
    head = ["engine", "top-1 (%)", "eager, fp32 (%)", "difference, points [95 %]", "taken unasked"]
    return table(head, rows) + note


def _parity(entries: Sequence[Mapping[str, Any]]) -> str:
    head = ["engine", "keep rate", "same first class", "top-1 (%)", "largest difference of a score", "same merges"]
    rows = [
        [
            entry["engine"].replace(":", ", "),
            f"{entry['keep_rate']:g}",
            f"{entry['agreement']:.2%}, goal {'reached' if entry['agreement'] >= entry['goal'] else 'missed'}",
            f"{100 * entry['top1']:.2f}",
            f"{entry['score_max_difference']:.2g}",
            f"{entry['same_source_map']:.2%}",
        ]
        for entry in entries
    ]
    first = entries[0]
    note = (
        f"\nEager float32 answers {100 * first['reference_top1']:.2f} % right at keep rate {first['keep_rate']:g}. "
        f"`{first['command']}` and the like, checkpoint `{first['checkpoint']}`, {first['images']:,} test images, "
        f"{first['machine']['device']}, torch {first['machine']['torch']}.\n"
    )
    return table(head, rows) + note


def engines(results: Path) -> str:
    """Each engine beside eager: images/s per model and batch size."""
    entries = _any("engines", results)
    if not entries:
        return f"{reports.NOT_RUN}\n"
    sizes = sorted({entry["batch_size"] for entry in entries})
    head = ["model", "engine", *(f"images/s, batch {size}" for size in sizes), "ready after (s)"]
    pairs = dict.fromkeys((entry["model"], entry["engine"]) for entry in entries)
    rows = [
        _engine_row([entry for entry in entries if (entry["model"], entry["engine"]) == pair], f"`{pair[0]}`", pair[1])
        for pair in pairs
    ]
    first = entries[0]
    machine = first["machine"]
    note = (
        f"\n`{first['command']}` on {machine['device']}, {machine['threads']} threads, torch {machine['torch']}; uint8 "
        f"images in, host arrays out, medians of {first['repeats']} batches in turns, speed-up as the median of the "
        "ratios to eager. The last column is loading, building and warming up, without a cache.\n"
    )
    return table(head, rows) + note


def cpu(results: Path) -> str:
    """Plain and merging models in every precision of a CPU, in OpenVINO and in ONNX Runtime."""
    return runtimes.page(_any(runtimes.NAME, results))


def on_gpu(results: Path) -> str:
    """Plain and merging models on a GPU, eager and compiled."""
    return gpu.page(_any(gpu.NAME, results))


def where_time_goes(results: Path) -> str:
    """The time of one batch by the parts of the model."""
    return breakdown.page(_any(breakdown.NAME, results))


def study(name: str) -> Callable[[Path], str]:
    """The table of a study in full, for the docs."""

    def full(results: Path) -> str:
        entries = _any(f"ablation_{name}", results)
        if not entries:
            return f"{reports.NOT_RUN}\n"
        sentences = verdicts.findings(entries) if name == "score" else reports.findings(entries)
        return reports.study_table(entries) + _below(sentences, entries)

    return full


def by_picture(results: Path) -> str:
    """Budgets by picture: who gets which schedule, at the same mean cost."""
    entries = _any("by_picture", results)
    if not entries:
        return f"{reports.NOT_RUN}\n"
    return picture_report.table_of(entries) + _below(picture_report.findings(entries), entries)


def compared(results: Path) -> str:
    """Checkpoints that were trained with different merging, on the same images."""
    entries = _any(trained.NAME, results)
    return trained.page(entries) + (f"\n{trained.source(entries)}\n" if entries else "")


TABLES: dict[str, Callable[[Path], str]] = {
    "timing": timing,
    "released": released,
    "checkpoint": checkpoint,
    "methods": methods,
    "alpha": alpha,
    "scoring": scoring,
    "parity": parity,
    "engines": engines,
    "runtimes": cpu,
    "breakdown": where_time_goes,
    "gpu": on_gpu,
    "by_picture": by_picture,
    "trained": compared,
    **{f"study_{name}": study(name) for name in STUDIES},
}


def fill(page: str, results: Path) -> str:
    """The page with every marked table made anew."""
    return MARKED.sub(lambda match: match[1] + TABLES[match[2]](results) + match[3], page)


def _any(name: str, results: Path) -> list[dict[str, Any]]:
    """The records, or none: such rows say "not run"."""
    return records.read(name, results) if (results / f"{name}.jsonl").is_file() else []


def _below(sentences: Sequence[str], entries: Sequence[dict[str, Any]], *others: Sequence[dict[str, Any]]) -> str:
    lines = "".join(f"- {line}\n" for line in sentences)
    origin = reports.source(entries, *others)
    return (f"\n{lines}" if lines else "") + (f"\n{origin}\n" if origin else "")


def _timing_row(entries: list[dict[str, Any]]) -> list[str]:
    first = entries[0]
    tokens = " → ".join(str(count) for count in dict.fromkeys(first["schedule"]))
    rates = [
        f"{e['images_per_s']:.1f}" + (f" ({e['speed_up']:.2f}×)" if e["speed_up"] != 1 else "")
        for e in sorted(entries, key=lambda e: e["batch_size"])
    ]
    return [first["model"], tokens, f"{first['macs'] / 1e9:.2f}", f"{first['parameters'] / 1e6:.1f}", *rates]


def _engine_row(entries: list[dict[str, Any]], model: str, engine: str) -> list[str]:
    rates = [
        f"{e['images_per_s']:.1f}" + (f" ({e['speed_up']:.2f}×)" if e["speed_up"] != 1 else "")
        for e in sorted(entries, key=lambda e: e["batch_size"])
    ]
    return [model, f"{engine}, {entries[0]['precision']}", *rates, f"{entries[0]['start_s']:.0f}"]


def _source(entry: dict[str, Any]) -> str:
    machine = entry["machine"]
    return (
        f"\nRandom weights. `{entry['command']}` on {machine['device']}, {machine['threads']} threads, torch "
        f"{machine['torch']}, timm {machine['timm']}; medians of {entry['repeats']} passes in turns, speed-up as "
        "the median of the ratios.\n"
    )


def commands(training: Mapping[str, Any]) -> list[str]:
    """The commands that led to weights whose manifest says this of their training, the first one first."""
    if "command" not in training:
        return []
    start = training.get("started_from", {})
    before = [start.get("training", start), *(member["training"] for member in training.get("averaged", ()))]
    steps = [step for stage in before for step in commands(stage)]
    return [*dict.fromkeys(steps), training["command"]]


def pages(root: Path) -> list[Path]:
    """The pages that may hold tables."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def main(arguments: Sequence[str] | None = None) -> None:
    """Rewrites every marked table; takes no flags but --help."""
    cli.parser("python -m training.tables", "Write the tables of README.md and docs/ from docs/results/.").parse_args(
        arguments
    )
    for page in pages(Path()):
        text = page.read_text(encoding="utf-8")
        if (filled := fill(text, records.RESULTS)) != text:
            files.write_text(page, filled)
            print(f"rewritten: {page}")


if __name__ == "__main__":
    cli.run(main)
