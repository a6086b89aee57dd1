"""How Grafana writes down a panel, and where it stands."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

DATASOURCE = {"type": "prometheus", "uid": "prometheus"}
WIDTH = 24
"""Columns of Grafana's grid."""

Json = dict[str, Any]
Query = tuple[str, str]
"""An expression and the legend of its series. `SELECTED` becomes the label matchers of the chosen processes."""
Row = tuple[str, int, Sequence[Json]]
"""A heading, and panels of one height that share the width under it."""


def expression(text: str) -> str:
    """The PromQL with the dashboard's variables in it."""
    return text.replace("SELECTED", 'job="freqmerge", instance=~"$instance", replica=~"$replica"')


def quantiles(metric: str, by: str = "", matching: str = "", levels: Sequence[float] = (0.5, 0.9, 0.99)) -> list[Query]:
    """Percentiles of a histogram, one query each."""
    labels = f"le, {by}" if by else "le"
    legend = f"{{{{{by}}}}}" if by else ""
    return [
        (
            f"histogram_quantile({level}, sum by ({labels}) (rate({metric}_bucket{{SELECTED{matching}}}[$window])))",
            f"{legend} p{100 * level:g}".strip(),
        )
        for level in levels
    ]


def mean(metric: str, by: str, legend: str) -> Query:
    """Mean of a histogram's observations."""
    total, number = (f"sum by ({by}) (rate({metric}_{part}{{SELECTED}}[$window]))" for part in ("sum", "count"))
    return f"{total} / {number}", legend


def panel(kind: str, title: str, queries: Sequence[Query], unit: str, text: str, **more: Any) -> Json:
    """A panel without its place; `more` are `defaults` of its fields and `options`."""
    instant = kind != "timeseries"
    targets = [
        {
            "refId": chr(ord("A") + index),
            "datasource": DATASOURCE,
            "expr": expression(query),
            "legendFormat": legend,
            "instant": instant,
            "range": not instant,
            **({"format": "table"} if kind == "table" else {}),
        }
        for index, (query, legend) in enumerate(queries)
    ]
    defaults = {"unit": unit, "color": {"mode": "palette-classic"}} | more.get("defaults", {})
    return {
        "type": kind,
        "title": title,
        "description": text,
        "datasource": DATASOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": more.get("options", {}),
        **({"transformations": more["transformations"]} if "transformations" in more else {}),
    }


def graph(title: str, queries: Sequence[Query], unit: str, text: str, stacked: bool = False) -> Json:
    """A time series from zero upwards."""
    custom: Json = {"lineWidth": 1, "fillOpacity": 40 if stacked else 10, "showPoints": "never"}
    if stacked:
        custom["stacking"] = {"mode": "normal", "group": "A"}
    options = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return panel("timeseries", title, queries, unit, text, defaults={"min": 0, "custom": custom}, options=options)


def stat(title: str, query: str, unit: str, text: str, steps: Sequence[tuple[float | None, str]] = ()) -> Json:
    """One number; `steps` colour it from a value on."""
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "background" if steps else "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "textMode": "value",
        "orientation": "auto",
    }
    thresholds = {"mode": "absolute", "steps": [{"value": value, "color": color} for value, color in steps]}
    defaults = {"color": {"mode": "thresholds"}, "thresholds": thresholds} if steps else {}
    return panel("stat", title, [(query, "")], unit, text, defaults=defaults, options=options)


def bars(title: str, query: str, legend: str, text: str) -> Json:
    """A bar per series."""
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "displayMode": "basic",
        "orientation": "horizontal",
        "showUnfilled": True,
    }
    return panel(
        "bargauge", title, [(query, legend)], "short", text, defaults={"min": 0, "decimals": 0}, options=options
    )


def table(title: str, query: str, columns: Sequence[str], text: str) -> Json:
    """The labels of the series, as rows."""
    wanted = {"id": "filterFieldsByName", "options": {"include": {"names": list(columns)}}}
    return panel("table", title, [(query, "")], "short", text, transformations=[wanted], options={"showHeader": True})


def laid_out(rows: Sequence[Row]) -> list[Json]:
    """The panels with their places and ids."""
    placed: list[Json] = []
    ids, y = count(1), 0
    for title, height, panels in rows:
        heading = {"type": "row", "title": title, "collapsed": False, "panels": []}
        placed.append(heading | {"id": next(ids), "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1}})
        width = WIDTH // len(panels)
        for index, one in enumerate(panels):
            placed.append(one | {"id": next(ids), "gridPos": {"x": index * width, "y": y + 1, "w": width, "h": height}})
        y += 1 + height
    return placed
