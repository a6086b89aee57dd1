"""Tables in Markdown from the records. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.load.goals import find, verdicts

Record = dict[str, Any]

STAGES = ("read", "decode", "queue", "engine", "encode")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are aligned right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, rule, *rows))


def goals(records: Sequence[Record]) -> str:
    """Every goal beside its measured value."""
    words = {True: "met", False: "missed", None: "-"}
    rows = [(one.goal, one.wanted, one.measured, words[one.met]) for one in verdicts(records)]
    return table(("goal", "wanted", "measured", "verdict"), rows)


def peers(records: Sequence[Record]) -> str:
    """Images/s, latencies and CPU of every server at every concurrency."""
    head = ("server", "clients", "images/s", "lowest to highest", "p50 ms", "p99 ms", "CPU µs", "MiB", "not 200")
    rows = [
        (
            one["label"],
            str(int(one["concurrency"])),
            f"{one['images_per_s']:.0f}",
            " to ".join(f"{value:.0f}" for value in one["images_per_s_range"]),
            _number(one.get("p50_ms")),
            _number(one.get("p99_ms")),
            f"{one['server_cpu_us']:.0f}",
            f"{one['rss_mib']:.0f}",
            str(_refused(one)),
        )
        for one in find(records, kind="peer")
    ]
    return table(head, rows)


def sweep(records: Sequence[Record], server: str) -> str:
    """Rate, percentiles and CPU by load, with the machine's load beside."""
    head = ("load", "images/s", "p50 ms", "p90", "p95", "p99", "batch", "CPU µs", "client core", "machine", "not 200")
    rows = [
        (
            _load(one),
            f"{one['images_per_s']:.0f}",
            *(_number(one.get(f"p{percent}_ms")) for percent in (50, 90, 95, 99)),
            f"{one['batch']:.1f}",
            f"{one['server_cpu_us']:.0f}",
            f"{100 * one['client_cpu_share']:.0f} %",
            f"{100 * one['machine_busy_share']:.0f} %",
            str(_refused(one)),
        )
        for one in [*find(records, kind="closed", server=server), *find(records, kind="open", server=server)]
    ]
    return table(head, rows)


def stages(records: Sequence[Record], server: str) -> str:
    """Where the time of a request goes, by load."""
    rows = [
        (_load(one), *(f"{one['stages_us'][stage]:.0f}" if stage in one["stages_us"] else "-" for stage in STAGES))
        for one in [*find(records, kind="closed", server=server), *find(records, kind="open", server=server)]
    ]
    return table(("load", *(f"{stage} µs" for stage in STAGES)), rows)


def many(records: Sequence[Record]) -> str:
    """64 pictures per request against the engine alone."""
    head = ("engine", "route", "images/s", "engine alone", "share", "p50 ms", "p99 ms", "not 200")
    rows = [
        (
            "fake" if one["server"] == "freqmerge" else "shipped checkpoint",
            f"`{one['route']}`",
            f"{one['images_per_s']:.0f}",
            f"{one['offline_images_per_s']:.0f}",
            f"{100 * one['share_of_offline']:.1f} %",
            _number(one.get("p50_ms")),
            _number(one.get("p99_ms")),
            str(_refused(one)),
        )
        for one in find(records, kind="many")
    ]
    return table(head, rows)


def overload(records: Sequence[Record]) -> str:
    """Three times the capacity."""
    head = (
        "offered /s",
        "peak images/s",
        "answered /s",
        "p99 ms",
        "refused p50 ms",
        "refused p99 ms",
        "`/live` p99 ms",
    )
    rows = [
        (
            f"{one['rate']:.0f}",
            f"{one['peak_images_per_s']:.0f}",
            f"{one['images_per_s']:.0f}",
            _number(one.get("p99_ms")),
            _number(one.get("refused", {}).get("p50_ms")),
            _number(one.get("refused", {}).get("p99_ms")),
            _number(one["live"].get("p99_ms")),
        )
        for one in find(records, kind="overload")
    ]
    return table(head, rows)


def scale(records: Sequence[Record]) -> str:
    """Layouts of Ray Serve beside the single process."""
    head = ("limit", "ingresses", "engines", "images/s", "p50 ms", "p99 ms", "CPU µs", "machine", "MiB", "not 200")
    found = find(records, kind="layout")
    rows = [
        (
            one["load"] + (", HAProxy" if one["haproxy"] else ""),
            *(("single process", "") if one["layout"] == "single" else one["layout"].split("x")),
            f"{one['images_per_s']:.0f}",
            _number(one.get("p50_ms")),
            _number(one.get("p99_ms")),
            f"{one['server_cpu_us']:.0f}",
            f"{100 * one['machine_busy_share']:.0f} %",
            f"{one['rss_mib']:.0f}",
            str(_refused(one)),
        )
        for one in sorted(found, key=_scale_order)
    ]
    return table(head, rows)


def kills(records: Sequence[Record]) -> str:
    """What a killed replica cost."""
    head = ("killed", "clients", "requests", "200", "5xx and 429", "no answer", "longest ms")
    rows = []
    for one in find(records, kind="kill"):
        good, silent = one["statuses"].get("200", 0), one["statuses"].get("0", 0)
        errors = one["requests"] - good - silent
        counts = (one["clients"], one["requests"], good, errors, silent)
        rows.append((f"one of two: {one['killed']}", *map(str, counts), _number(one["longest_ms"])))
    return table(head, rows)


def _scale_order(one: Record) -> tuple[str, bool, str]:
    layout = "" if one["layout"] == "single" else one["layout"][::-1]
    return one["load"], one["haproxy"], layout


def source(records: Sequence[Record]) -> str:
    """Command, machine, versions and commit of the records; empty of none."""
    if not records or "command" not in records[0]:
        return ""
    first = records[0]
    machine = first["machine"]
    named = {name: value for name, value in machine.items() if name not in ("device", "cores", "system")}
    named |= next((one["peers"] for one in records if "peers" in one), {})
    versions = ", ".join(f"{name} {value}" for name, value in sorted(named.items()))
    return f"`{first['command']}` on {machine['device']}, commit {first['commit']}, {first['time'][:10]}; {versions}.\n"


def whole(records: Sequence[Record]) -> str:
    """All tables, for the terminal."""
    parts = [
        ("Goals", goals(records)),
        ("Beside other servers", peers(records)),
        ("Fake engine", sweep(records, "freqmerge")),
        ("Where the time goes", stages(records, "freqmerge")),
        ("64 images per request", many(records)),
        ("Three times the capacity", overload(records)),
        ("Shipped checkpoint", sweep(records, "freqmerge_real")),
    ]
    return "\n".join(f"{title}\n\n{text}" for title, text in parts)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _load(one: Record) -> str:
    return f"{one['concurrency']} clients" if "concurrency" in one else f"{one['rate']:.0f} requests/s, open loop"


def _refused(one: Record) -> int:
    return sum(count for status, count in one["statuses"].items() if status != "200")
