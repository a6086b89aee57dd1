"""The table and the sentences of the study of budgets by picture, read off its records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from training.measure.paired import holm
from training.measure.picture_statistics import ENERGIES, FIRST_BLOCK, STATISTICS
from training.studies.divisions import OPPOSITE, ORACLE, RANDOM, SCHEDULE
from training.studies.reports import UNDECIDED, about_the_sample, outcome, paired_cell, table

Entry = Mapping[str, Any]

LABELS = {
    SCHEDULE: "one schedule for all",
    RANDOM: "at random",
    **STATISTICS,
    **{f"{OPPOSITE}{name}": f"the opposite: {label}" for name, label in STATISTICS.items()},
    ORACLE: "oracle: the answers known",
}
REFERENCES = {
    RANDOM: "a choice at random at the same mean cost",
    SCHEDULE: "one schedule for all at the same cost",
}


def table_of(entries: Sequence[Entry]) -> str:
    """Every way of dividing the pictures: shares, mean cost, top-1, and the paired differences."""
    head = ["strategy, keep rates (share of the pictures)", "chosen by", "mean GMACs", "top-1 (%)"]
    head += ["against one schedule: points [95 %], p", "against random: points [95 %], p"]
    rows = [
        [
            f"{entry['strategy_label']}, {_shares(entry)}",
            LABELS[entry["row"]],
            f"{entry['macs'] / 1e9:.4g}",
            _top1(entry),
            *(paired_cell(entry["against"][name]) if name in entry["against"] else "" for name in (SCHEDULE, RANDOM)),
        ]
        for entry in entries
    ]
    return table(head, rows)


def findings(entries: Sequence[Entry]) -> list[str]:
    """For each strategy: what beats chance, one schedule and the first block, and how much there is to win."""
    sentences = []
    for strategy in dict.fromkeys(entry["strategy"] for entry in entries):
        rows = [entry for entry in entries if entry["strategy"] == strategy]
        label = rows[0]["strategy_label"]
        sentences += [_against(label, rows, reference) for reference in REFERENCES]
        sentences += [_against_first_block(label, rows), _within_reach(label, rows), _costs(label, rows)]
    return sentences + (about_the_sample(entries[0]) if entries else [])


def _against(label: str, rows: Sequence[Entry], reference: str) -> str:
    """Every statistic in every mix against one reference."""
    pairs = {
        f"{LABELS[row['row']]}, {_mix(row)}": (row["row"] in ENERGIES, row["against"][reference])
        for row in rows
        if row["row"] in STATISTICS
    }
    outcomes = _outcomes({name: pair for name, (_, pair) in pairs.items()})
    won = any(said == "better" and pairs[name][0] for name, said in outcomes.items())
    verdict = "" if won else f" No energy beats {REFERENCES[reference]}."
    comparisons = {name: pair for name, (_, pair) in pairs.items()}
    summary = _summary(comparisons, outcomes)
    return f"{label}: of {len(comparisons)} choices tested against {REFERENCES[reference]}{summary}{verdict}"


def _against_first_block(label: str, rows: Sequence[Entry]) -> str:
    """Every energy in every mix against every statistic of the first block."""
    comparisons = {
        f"{LABELS[row['row']]} against {FIRST_BLOCK[rival]}, {_mix(row)}": row["against"][rival]
        for row in rows
        if row["row"] in ENERGIES
        for rival in FIRST_BLOCK
    }
    summary = _summary(comparisons, _outcomes(comparisons))
    return (
        f"{label}: of {len(comparisons)} comparisons of an energy with a statistic of the plain model's first block"
        f"{summary}"
    )


def _within_reach(label: str, rows: Sequence[Entry]) -> str:
    gains = [100 * row["against"][SCHEDULE]["difference"] for row in rows if row["row"] == ORACLE]
    return (
        f"{label}: with the answers known beforehand the gain over one schedule would be {min(gains):+.2f} to "
        f"{max(gains):+.2f} points."
    )


def _costs(label: str, rows: Sequence[Entry]) -> str:
    """How far the choices are from costing the same."""
    single = {row["mean_rate"]: row["macs"] for row in rows if row["row"] == SCHEDULE}
    off = max(abs(row["macs"] / single[row["mean_rate"]] - 1) for row in rows if row["row"] in STATISTICS)
    return (
        f"{label}: the mean cost of these choices is that of the one schedule within {off:.2%}; thresholds from the "
        f"{rows[0]['thresholds_from']} images, labels unseen."
    )


def _outcomes(comparisons: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """'better' or 'worse' where the Holm-corrected test and the interval agree on it."""
    corrected = holm([pair["p"] for pair in comparisons.values()])
    return {name: outcome({**pair, "p": p}) for (name, pair), p in zip(comparisons.items(), corrected, strict=True)}


def _summary(comparisons: Mapping[str, Mapping[str, Any]], outcomes: Mapping[str, str]) -> str:
    named = {name: f"{name} ({100 * pair['difference']:+.2f} points)" for name, pair in comparisons.items()}
    parts = [
        f"{said}: {'; '.join(named[name] for name in comparisons if outcomes[name] == said) or 'none'}"
        for said in ("better", "worse")
    ]
    left = sum(said == UNDECIDED for said in outcomes.values())
    return f" (Holm-corrected, 5 %), {', '.join(parts)}; {left} without a {UNDECIDED.removeprefix('no ')}."


def _mix(entry: Entry) -> str:
    """The schedules of a mix, and the one that they cost on average."""
    return f"keep rates {' '.join(f'{rate:g}' for rate in entry['keep_rates'])} for {entry['mean_rate']:g}"


def _shares(entry: Entry) -> str:
    total = sum(entry["pictures"])
    pairs = zip(entry["keep_rates"], entry["pictures"], strict=True)
    return ", ".join(f"{rate:g} ({pictures / total:.0%})" for rate, pictures in pairs)


def _top1(entry: Entry) -> str:
    each = entry.get("top1_per_seed", [entry["top1"]])
    spread = f" ({100 * min(each):.2f} to {100 * max(each):.2f}, {len(each)} draws)" if len(each) > 1 else ""
    return f"{100 * entry['top1']:.2f}{spread}"
