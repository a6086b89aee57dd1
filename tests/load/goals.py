"""The goals of the service beside what was measured. Pure: records in, verdicts out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

Record = dict[str, Any]

AT = 16
"""Concurrency at which the CPU of a request is judged."""


class Verdict(NamedTuple):
    """One goal."""

    goal: str
    wanted: str
    measured: str
    met: bool | None
    """None: not measured."""


def verdicts(records: Sequence[Record]) -> list[Verdict]:
    """Every goal, in order; what the records lack is not measured."""
    return [goal(records) for goal in GOALS]


def find(records: Sequence[Record], **fields: Any) -> list[Record]:
    """Records with these values."""
    return [one for one in records if all(one.get(name) == value for name, value in fields.items())]


def batcher(records: Sequence[Record]) -> Verdict:
    """The batcher's own share at one client."""
    return _judge(
        "batcher adds at concurrency 1, p50",
        "< 0.2 ms",
        [one["added_p50_ms"] for one in find(records, kind="batcher")],
        lambda value: value < 0.2,
        "{:.3f} ms",
    )


def cpu(records: Sequence[Record]) -> Verdict:
    """Server CPU of a request, decoding left out."""
    decode = [one["cpu_us"] for one in find(records, kind="decode")]
    whole = [one["server_cpu_us"] for one in find(records, kind="closed", server="freqmerge", concurrency=AT)]
    return _judge(
        f"server CPU per request without decoding, {AT} clients",
        "≤ 350 µs",
        [all_us - decode_us for all_us, decode_us in zip(whole, decode, strict=False)],
        lambda value: value <= 350,
        "{:.0f} µs",
    )


def many(server: str, route: str, label: str) -> Callable[[Sequence[Record]], Verdict]:
    """The goal of one engine and route at 64 images per request."""

    def judged(records: Sequence[Record]) -> Verdict:
        found = find(records, kind="many", server=server, route=route)
        return _judge(
            f"64 images per request, {label}, of the engine's offline images/s",
            "≥ 90 %",
            [100 * one["share_of_offline"] for one in found],
            lambda value: value >= 90,
            "{:.1f} %",
        )

    return judged


def ahead(concurrency: int) -> Callable[[Sequence[Record]], Verdict]:
    """Ahead of every peer in images/s and p99."""

    def judged(records: Sequence[Record]) -> Verdict:
        goal, wanted = f"images/s and p99 at {concurrency} clients", "ahead of every peer"
        found = find(records, kind="peer", concurrency=concurrency)
        ours, others = _split(found)
        if ours is None or not others:
            return Verdict(goal, wanted, "not measured", None)
        best = max(others, key=lambda one: one["images_per_s"])
        quickest = min(others, key=_p99_ms)
        met = ours["images_per_s"] > best["images_per_s"] and _p99_ms(ours) < _p99_ms(quickest)
        measured = (
            f"{ours['images_per_s']:.0f} images/s (best peer: {best['label']}, {best['images_per_s']:.0f}); "
            f"p99 {_p99_ms(ours):.1f} ms (best peer: {quickest['label']}, {_p99_ms(quickest):.1f} ms)"
        )
        return Verdict(goal, wanted, measured, met)

    return judged


def litserve(records: Sequence[Record]) -> Verdict:
    """Twice LitServe at the highest concurrency."""
    ours, others = _split(find(records, kind="peer", concurrency=64))
    rival = find(others, server="litserve")
    values = [ours["images_per_s"] / rival[0]["images_per_s"]] if ours and rival and rival[0]["images_per_s"] else []
    return _judge("images/s against LitServe, 64 clients", "≥ 2×", values, lambda value: value >= 2, "{:.2f}×")


def idle(records: Sequence[Record]) -> Verdict:
    """CPU without requests."""
    shares = [100 * one["cpu_share"] for one in find(records, kind="idle", server="freqmerge")]
    return _judge("CPU of an idle server", "< 1 % of a core", shares, lambda value: value < 1, "{:.2f} %")


def goodput(records: Sequence[Record]) -> Verdict:
    """Answers under too much load."""
    shares = [100 * one["goodput_share"] for one in find(records, kind="overload")]
    return _judge("goodput at three times capacity", "≥ 90 % of its peak", shares, lambda one: one >= 90, "{:.1f} %")


def rejects(records: Sequence[Record]) -> Verdict:
    """How fast a refusal comes."""
    values = [one["refused"]["p99_ms"] for one in find(records, kind="overload") if "refused" in one]
    return _judge("refusals at three times capacity, p99", "< 10 ms", values, lambda one: one < 10, "{:.1f} ms")


def live(records: Sequence[Record]) -> Verdict:
    """Liveness under too much load."""
    values = [one["live"]["p99_ms"] for one in find(records, kind="overload") if "p99_ms" in one["live"]]
    return _judge("`/live` at three times capacity, p99", "< 50 ms", values, lambda one: one < 50, "{:.1f} ms")


GOALS = (
    batcher,
    cpu,
    many("freqmerge", "/classify/batch", "files, fake engine"),
    many("freqmerge", "/v2 infer", "pixels, fake engine"),
    many("freqmerge_real", "/classify/batch", "files, shipped checkpoint"),
    many("freqmerge_real", "/v2 infer", "pixels, shipped checkpoint"),
    ahead(1),
    ahead(16),
    ahead(64),
    litserve,
    idle,
    goodput,
    rejects,
    live,
)


def _judge(goal: str, wanted: str, values: Sequence[float], met: Callable[[float], bool], unit: str) -> Verdict:
    if not values:
        return Verdict(goal, wanted, "not measured", None)
    return Verdict(goal, wanted, unit.format(values[0]), met(values[0]))


def _p99_ms(record: Record) -> float:
    """Infinite for a server that answered nothing."""
    return float(record.get("p99_ms", float("inf")))


def _split(found: Sequence[Record]) -> tuple[Record | None, list[Record]]:
    ours = find(found, server="freqmerge")
    return (ours[0] if ours else None), [one for one in found if one["server"] != "freqmerge"]
