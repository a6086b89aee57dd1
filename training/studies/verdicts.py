"""Whether the frequency score earns its place: the sentences under the study `score`, read off its records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from model.merging.strategies import of_role
from training.measure.paired import holm
from training.studies.plan import TOME
from training.studies.reports import about_the_sample, p_value

Entry = Mapping[str, Any]


def findings(entries: Sequence[Entry]) -> list[str]:
    """For each schedule: what beats ToMe, the score beside its controls, and the form that half the images chose."""
    measured = [entry for entry in entries if "top1" in entry]
    sentences = []
    for share in dict.fromkeys(entry["budget"] for entry in measured):
        rows = {_name(entry): entry for entry in measured if entry["budget"] == share and _against(entry)}
        if rows:
            sentences += _schedule(
                "On the checkpoint's schedule" if share is None else f"At {share:.0%} of the cost", rows
            )
    return sentences + (about_the_sample(measured[0]) if measured else [])


def _schedule(where: str, rows: Mapping[str, Entry]) -> list[str]:
    corrected = dict(zip(rows, holm([_against(entry)["p"] for entry in rows.values()]), strict=True))
    better, worse = (
        [name for name in rows if corrected[name] < 0.05 and sign * _against(rows[name])["difference"] > 0]
        for sign in (1, -1)
    )
    sentences = [
        f"{where}, of {len(rows)} rows tested against ToMe on the same blocks (Holm-corrected, 5 %): "
        f"better: {_listed(better, rows)}; worse: {_listed(worse, rows)}; the others show no difference."
    ]
    if "lfgm" in rows:
        names = [name for name in ("lfgm", *sorted(of_role("control"))) if name in rows]
        sentences.append(f"{where}, the frequency score beside its controls, top-1: {_scores(names, rows)}.")
    candidates = {name: entry for name, entry in rows.items() if entry["config"]["scoring"] in _SCORES}
    return sentences + ([_confirmed(where, candidates)] if candidates else [])


_SCORES = {"lfgm", *of_role("variant")}


def _confirmed(where: str, rows: Mapping[str, Entry]) -> str:
    """The form of the frequency score that the even images prefer, and what the odd ones say of it."""
    best = max(rows.values(), key=lambda entry: entry["halves"][_reference(entry)]["chosen"])
    half = best["halves"][_reference(best)]
    said = "confirmed" if half["p"] < 0.05 and half["confirmed"] > 0 else "not confirmed"
    return (
        f"{where}, of {len(rows)} forms of the score the images with an even index prefer {best['label']} "
        f"({100 * half['chosen']:+.2f} points against ToMe); the others give {100 * half['confirmed']:+.2f}, "
        f"p {p_value(half['p'])}: {said}."
    )


def _reference(entry: Entry) -> str:
    return next(str(other) for other in entry["against"] if other.rpartition("/")[2] == TOME)


def _against(entry: Entry) -> Mapping[str, Any]:
    """The comparison with ToMe on the same blocks; empty where there is none."""
    pairs = (pair for other, pair in entry["against"].items() if other.rpartition("/")[2] == TOME)
    return next(pairs, {})


def _name(entry: Entry) -> str:
    return str(entry["row"].rpartition("/")[2])


def _listed(names: Sequence[str], rows: Mapping[str, Entry]) -> str:
    gains = [f"{rows[name]['label']} ({100 * _against(rows[name])['difference']:+.2f})" for name in names]
    return ", ".join(gains) or "none"


def _scores(names: Sequence[str], rows: Mapping[str, Entry]) -> str:
    return ", ".join(f"{rows[name]['label']} {100 * rows[name]['top1']:.2f}" for name in names)
