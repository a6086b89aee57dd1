"""Alert rules and dashboard ask only for what the service's registry has, and the docs explain every alert."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest

from service.app import create_app
from service.observe.metrics import exposition
from service.settings import Settings
from tests.docker.files import DOCKER, ROOT, alert_rules, dashboard, panel_queries, settings
from tests.support.doubles import FakeEngine, loader

SAMPLES = {
    "counter": ("_total",),
    "histogram": ("_bucket", "_sum", "_count"),
    "info": ("_info",),
    "gauge": ("",),
}
PROMETHEUS_OWN = {"up", "ALERTS"}
KEYWORDS = {"and", "or", "unless", "offset"}


@pytest.fixture(scope="module")
def app() -> Any:
    return create_app(Settings(), loader(FakeEngine()))


def expressions() -> dict[str, str]:
    """Every expression of the rules and of the dashboard, by where it stands."""
    rules = {f"alert {rule['alert']}": rule["expr"] for rule in alert_rules()}
    return rules | {f"panel {title}": query for title, query in panel_queries().items()}


def names(expression: str) -> set[str]:
    """The metrics that an expression selects by name: what is left when all else that has a name is taken away."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]", "", bare)
    bare = re.sub(r"\b(by|on|ignoring|without)\s*\([^)]*\)", "", bare)
    return set(re.findall(r"\b[a-zA-Z_]\w*\b(?!\s*\()", bare)) - KEYWORDS


def test_the_names_in_an_expression_are_found() -> None:
    text = 'sum by (le) (rate(a_total{b="c", d=~"e|f"}[5m] offset 1h)) / ignoring(g) h > 0.5 and i[$j]'
    assert names(text) == {"a_total", "h", "i"}


def test_every_metric_in_rules_and_dashboard_is_in_the_registry(app: Any) -> None:
    registry = app.state.service.metrics.registry
    exposed = {family.name + end for family in registry.collect() for end in SAMPLES[family.type]}
    missing = {
        where: unknown
        for where, expression in expressions().items()
        if (unknown := names(expression) - exposed - PROMETHEUS_OWN)
    }
    assert missing == {}


def test_the_routes_and_outcomes_that_are_selected_exist(app: Any) -> None:
    text = "\n".join(expressions().values())
    exact = set(re.findall(r'route="([^"]+)"', text))
    assert exact == {"/classify"}
    assert {"/classify", "/live", "/ready", "/metrics"} <= app.openapi()["paths"].keys()
    told = exposition(app.state.service.metrics.registry, "")[0].decode()
    outcomes = set(re.findall(r'outcome="([^"]+)"', text))
    assert outcomes == {"answered"}
    assert 'freqmerge_images_total{outcome="answered"} 0.0' in told


def test_every_alert_has_a_test_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    asked = [one for case in settings("alerts_test.yml")["tests"] for one in case.get("alert_rule_test", [])]
    alerts = {rule["alert"] for rule in alert_rules()}
    assert {one["alertname"] for one in asked if one["exp_alerts"]} == alerts
    waits = {rule["alert"] for rule in alert_rules() if "for" in rule}
    assert {one["alertname"] for one in asked if not one["exp_alerts"]} == waits, "the others: see the first test"


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    page = (ROOT / "docs/guide/alerts.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| `FreqMerge")]
    documented = {(row[1].strip(" `"), row[2].strip()) for row in rows}
    assert documented == {(rule["alert"], rule["labels"]["severity"]) for rule in alert_rules()}
    assert all(len(row[4].strip()) > 20 for row in rows)


def test_the_dashboard_is_what_its_script_prints() -> None:
    done = subprocess.run(
        [sys.executable, "docker/grafana/make_dashboard.py"],
        cwd=ROOT,
        env={"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    committed = (DOCKER / "grafana/dashboards/freqmerge.json").read_text(encoding="utf-8")
    assert done.stdout == committed, "write it again: make_dashboard.py says how"


def test_panels_fill_the_grid_without_overlapping() -> None:
    taken = [
        (x, y)
        for panel in dashboard()["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(taken) == len(set(taken))
    assert {x for x, _ in taken} == set(range(24))
    ids = [panel["id"] for panel in dashboard()["panels"]]
    assert len(ids) == len(set(ids))


def test_every_query_is_restricted_to_the_chosen_processes_and_window() -> None:
    assert [variable["name"] for variable in dashboard()["templating"]["list"]] == ["instance", "replica", "window"]
    for where, query in panel_queries().items():
        for selector in re.findall(r"\{([^}]*)\}", query):
            assert (
                selector.startswith('job="freqmerge", instance=~"$instance", replica=~"$replica"') or "ALERTS" in query
            ), where
        assert not re.search(r"\[(?!\$window\]|\$__range\])", query), where
