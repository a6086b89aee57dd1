"""Checkpoints of several runs side by side: whether only their merging differs, their table, and what follows from it.

Like the other studies, every number and every verdict is read off the entries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from model import ModelConfig
from model.config import BackboneConfig, MergeConfig
from model.errors import ConfigError
from model.manifest import Manifest
from model.merging.strategies import STRATEGIES
from training.config import FREE, TrainConfig
from training.studies.plan import PLAIN
from training.studies.reports import (
    NOT_RUN,
    about_the_sample,
    about_the_tests,
    by_outcome,
    conditions,
    costs,
    duration,
    paired_cell,
    table,
)

Entry = Mapping[str, Any]
NAME = "trained"
"""Of the records and of the page in logs/."""
OWN = "own"
"""Name of the merging config that a checkpoint was trained with."""
START = "started_from"
UNKNOWN = "unknown"
FACTS = ("images", "epoch", "images_seen", "processes", "arithmetic")
"""What a manifest says of a run beside its config, which decides the weights too."""


class Kinship(NamedTuple):
    """How a checkpoint came about beside how the first one did: differing fields with the first's value and its own."""

    same_start: bool | None
    """Whether both began with the same weights; None where a manifest does not tell."""
    merging: dict[str, tuple[Any, Any]]
    """Fields of the merging config."""
    beyond: dict[str, tuple[Any, Any]]
    """Everything else that decides the weights: recipe, data, architecture, versions."""

    @property
    def alike(self) -> bool:
        """Whether nothing but the merging differs."""
        return self.same_start is True and not self.beyond


def refuse_others(manifests: Mapping[Path, Manifest]) -> None:
    """Returns if the checkpoints can be compared on the same test images; raises `ConfigError` naming the one at fault.

    Expected are different checkpoints with the same classes and preprocessing, trained on the same data set.
    """
    (path, first), *others = manifests.items()
    seen = {first.digest: path}
    for other, manifest in others:
        if manifest.digest in seen:
            raise ConfigError(f"ckpts: expected different checkpoints, found {seen[manifest.digest]} again in {other}")
        seen[manifest.digest] = other
        for field, expected, found in _requirements(first, manifest):
            if found != expected:
                raise ConfigError(
                    f"ckpts: expected the {field} of {path} ({_shown(expected)}), found {_shown(found)} in {other}; "
                    "compare checkpoints that see the same test images"
                )


def _requirements(first: Manifest, other: Manifest) -> list[tuple[str, Any, Any]]:
    return [
        ("classes", first.class_names, other.class_names),
        ("preprocessing", first.preprocess, other.preprocess),
        ("data set", first.training.get("data"), other.training.get("data")),
    ]


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{len(value)} classes: {', '.join(value[:3])}, …"
    return str(value)


def kinship(first: Manifest, own: Manifest) -> Kinship:
    """What the two manifests say of how the checkpoints came about."""
    starts = _start(first), _start(own)
    same_start = first.digest == own.digest or (None if UNKNOWN in starts else starts[0] == starts[1])
    merging = _merging(first), _merging(own)
    if not (trained_merging(first) and trained_merging(own)):  # where nothing merges, no other field says anything
        merging = {"keep_rate": merging[0]["keep_rate"]}, {"keep_rate": merging[1]["keep_rate"]}
    return Kinship(same_start, _differing(*merging), _differing(_recipe(first), _recipe(own)))


def _start(manifest: Manifest) -> str:
    """The weights that a run began with: the SHA-256 of their file, timm's on the hub, or drawn by the seed."""
    start = manifest.training.get(START, {})
    if "sha256" in start:
        return str(start["sha256"])
    if "hub" in start:
        return f"hub: {start['hub']}"
    config = manifest.training.get("config")
    if config is None or config.get("pretrained"):  # a run that does not tell which file that was
        return UNKNOWN
    return f"drawn by seed {config.get('seed')}"


def _merging(manifest: Manifest) -> dict[str, Any]:
    """The merging config that the run trained with."""
    merging = manifest.config.model_dump(mode="json", include=set(MergeConfig.model_fields))
    return merging if trained_merging(manifest) else {**merging, "keep_rate": 1.0}


def trained_merging(manifest: Manifest) -> bool:
    """Whether tokens merged during the training; a release may have switched merging on afterwards."""
    return manifest.config.merges and bool(manifest.training.get("config", {}).get("freqmerge", True))


def _recipe(manifest: Manifest) -> dict[str, Any]:
    run = manifest.training
    own = {**TrainConfig().model_dump(mode="json"), **run.get("config", {})}  # an older run had the defaults
    left_out = {*FREE, "freqmerge", "pretrained"}
    return {
        **manifest.config.model_dump(mode="json", include=set(BackboneConfig.model_fields)),
        **{key: value for key, value in own.items() if key not in left_out},
        **{key: run.get(key) for key in FACTS},
        "teacher": run.get("teacher", {}).get("digest"),
        "temperature_folded": run.get("calibration", {}).get("temperature"),
        **{f"version of {name}": version for name, version in manifest.versions.items()},
    }


def _differing(first: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {
        key: (first.get(key), own.get(key)) for key in dict.fromkeys((*first, *own)) if first.get(key) != own.get(key)
    }


def labels(manifests: Sequence[Manifest]) -> list[str]:
    """What a table calls each checkpoint: what it was trained with, and its digest where that is not enough."""
    names = [
        f"trained with {STRATEGIES[each.config.scoring].label}" if trained_merging(each) else "trained without merging"
        for each in manifests
    ]
    return [
        name if names.count(name) == 1 else f"{name} ({each.digest[:12]})"
        for name, each in zip(names, manifests, strict=True)
    ]


def common(manifests: Sequence[Manifest], also: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Changes of the model config for each name in `also`: nothing merges, or a strategy on the schedule of the first.

    Raises `ConfigError` for a strategy where no checkpoint merges.
    """
    merging = next((each.config for each in manifests if each.config.merges), None)
    if merging is None and set(also) - {PLAIN}:
        raise ConfigError("also: expected a checkpoint with a merging schedule for a strategy, found none that merges")
    schedule = {} if merging is None else merging.model_dump(include=set(MergeConfig.model_fields))
    return {name: {"keep_rate": 1.0} if name == PLAIN else {**schedule, "scoring": name} for name in also}


def evaluated_with(name: str) -> str:
    """A merging config in words."""
    named = {OWN: "as trained", PLAIN: "without merging"}
    return named[name] if name in named else next(s.label for key, s in STRATEGIES.items() if key == name)


def comparison_table(entries: Sequence[Entry]) -> str:
    """Every checkpoint under every merging config, beside the first checkpoint and beside its own training."""
    first = entries[0]["label"]
    head = ["checkpoint", "evaluated", "tokens", "GMACs", "top-1 (%)", "top-5 (%)", "NLL (nats)", "ECE (%)"]
    head += [f"against {first}: points [95 %], p", "against as trained: points [95 %], p"]
    rows = []
    for entry in entries:
        tokens, gmacs, _, top1 = costs(entry)
        pairs = entry["against"]
        rows.append(
            [
                entry["label"] + ("" if _alike(entry) else " \\*"),
                evaluated_with(entry["evaluated"]),
                *(tokens, gmacs, top1, f"{100 * entry['top5']:.2f}", f"{entry['loss']:.4f}"),
                f"{100 * entry['calibration_error']:.2f}",
                *(paired_cell(pairs[key]) if key in pairs else "" for key in ("first", OWN)),
            ]
        )
    return table(head, rows)


def findings(entries: Sequence[Entry]) -> list[str]:
    """What the comparisons show, by the rule of the other studies, and what has to be known to believe it."""
    return [
        *_outcomes(entries),
        *_kept_apart(entries),
        *about_the_sample(entries[0]),
        *about_the_tests(entries),
        *(_run(entry) for entry in entries if entry["evaluated"] == OWN),
    ]


def _outcomes(entries: Sequence[Entry]) -> list[str]:
    """One sentence per merging config that the checkpoints are evaluated with."""
    sentences = []
    for name in dict.fromkeys(entry["evaluated"] for entry in entries):
        pairs = [
            (entry, entry["against"]["first"])
            for entry in entries
            if entry["evaluated"] == name and "first" in entry["against"]
        ]
        sentences.append(
            f"Evaluated {_with(name)}, against the checkpoint {entries[0]['label']}, in points: {by_outcome(pairs)}."
        )
    return sentences


def _with(name: str) -> str:
    return evaluated_with(name) if name in (OWN, PLAIN) else f"with {evaluated_with(name)}"


def _kept_apart(entries: Sequence[Entry]) -> list[str]:
    """Whether the checkpoints started alike and differ in their merging alone; a sentence for each that does not."""
    own = [entry for entry in entries if entry["evaluated"] == OWN]
    odd = [entry for entry in own if not _alike(entry)]
    fields = dict.fromkeys(key for entry in own for key in entry["kinship"]["merging"])
    sentences = []
    if not odd:
        sentences.append(
            f"All {len(own)} runs started from the same weights ({own[0][START][:12]}) and differ in nothing but their "
            f"merging ({', '.join(fields) or 'not even that'}), by their own records."
        )
    marked = [f"\\* {entry['label']}: more than the merging differs from the first. {_more(entry)}" for entry in odd]
    return sentences + marked


def _alike(entry: Entry) -> bool:
    return Kinship(**entry["kinship"]).alike


def _more(entry: Entry) -> str:
    shared = Kinship(**entry["kinship"])
    said = {True: [], False: ["It started from other weights."], None: ["What it started from is not known."]}
    fields = [f"{key} {own} instead of {first}" for key, (first, own) in shared.beyond.items()]
    return " ".join([*said[shared.same_start], *([f"It has {', '.join(fields)}."] if fields else [])])


def _run(entry: Entry) -> str:
    """How a checkpoint was trained."""
    run = entry["run"]
    seen = "" if run["images_seen"] is None else f", {run['images_seen']:,} images"
    hours = "" if run["seconds"] is None else f" in {duration(run['seconds'])}"
    return (
        f"{entry['label'][:1].upper()}{entry['label'][1:]} ({entry['digest'][:12]}): `{run['command']}`; "
        f"epoch {run['epoch']} of {run['epochs']}{seen}{hours}."
    )


def facts(first: Manifest, own: Manifest) -> dict[str, Any]:
    """What an entry says of a checkpoint's training."""
    run = own.training
    return {
        START: _start(own),
        "kinship": kinship(first, own)._asdict(),
        "run": {
            **{key: run.get(key) for key in ("command", "epoch", "steps", "images_seen", "seconds", "arithmetic")},
            "epochs": run.get("config", {}).get("epochs"),
        },
    }


def source(entries: Sequence[Entry]) -> str:
    """Where the numbers come from."""
    return f"Measured: `{entries[0]['command']}`, {conditions(entries[0])}."


def page(entries: Sequence[Entry]) -> str:
    """Table and findings; "not run" without entries."""
    if not entries:
        return f"{NOT_RUN}\n"
    return comparison_table(entries) + "".join(f"\n- {line}" for line in findings(entries)) + "\n"


def config_of(manifest: Manifest, changes: Mapping[str, Any]) -> ModelConfig:
    """The checkpoint's own config with some fields changed; as it was trained where there are none."""
    if changes or trained_merging(manifest):
        return manifest.config.replace(**changes)
    return manifest.config.replace(keep_rate=1.0)
