"""The documentation is complete: every setting, route, parameter, problem and metric is in it."""

from __future__ import annotations

import re
from typing import Any, get_args

import pytest

from service.app import create_app
from service.errors import documented
from service.observe.metrics import metric_names
from service.observe.stage_times import STAGES
from service.pictures.colormaps import COLORMAPS
from service.pictures.heatmap import HeatmapFormat, View
from service.settings import PREFIX, Settings
from service.settings_errors import default, expectation, variable
from tests.support.doubles import FakeEngine, loader
from tests.support.paths import DOCS


@pytest.fixture(scope="module")
def app() -> Any:
    return create_app(Settings(), loader(FakeEngine()))


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_documented_with_its_default_and_its_range(name: str) -> None:
    field = Settings.model_fields[name]
    row = f"| `{variable(name, field, PREFIX)}` | {default(field)} | {expectation(field)} | {field.description} |"
    assert row in page("reference/configuration.md").splitlines()


def test_no_setting_is_documented_that_does_not_exist() -> None:
    starts = (f"| `{PREFIX}", "| `OTEL_")
    rows = [line for line in page("reference/configuration.md").splitlines() if line.startswith(starts)]
    assert len(rows) == len(Settings.model_fields)


def test_every_route_is_documented(app: Any) -> None:
    paths = app.openapi()["paths"]
    for path, methods in paths.items():
        for method in methods:
            assert f"`{method.upper()} {path}`" in page("reference/api.md")


def test_every_parameter_is_documented(app: Any) -> None:
    for path, methods in app.openapi()["paths"].items():
        for method, operation in methods.items():
            for parameter in operation.get("parameters", []):
                assert f"| `{parameter['name']}` |" in page("reference/api.md"), (method, path)


def test_every_choice_of_a_drawing_is_documented() -> None:
    for choices in (get_args(View), COLORMAPS, get_args(HeatmapFormat)):
        assert f"| {', '.join(choices)} |" in page("reference/api.md")


def test_every_problem_is_documented_with_its_status() -> None:
    rows = [line.split("|") for line in page("reference/api.md").splitlines() if line.startswith(("| 4", "| 5"))]
    found = {(int(row[1]), row[2].strip(" `")) for row in rows}
    assert found == {(kind.status, kind.reason) for kind in documented()}


def test_every_metric_is_documented_and_no_other(app: Any) -> None:
    rows = [
        line.split("`")[1] for line in page("reference/metrics.md").splitlines() if line.startswith("| `freqmerge_")
    ]
    assert sorted(rows) == metric_names(app.state.service.metrics.registry)


def test_every_stage_is_documented() -> None:
    assert ", ".join(STAGES) in page("reference/metrics.md")


def test_the_settings_that_the_docs_mention_exist() -> None:
    for file in [DOCS.parent / "README.md", *DOCS.rglob("*.md")]:
        for mentioned in re.findall(rf"{PREFIX}([A-Z_]+)", file.read_text(encoding="utf-8")):
            assert mentioned.lower() in Settings.model_fields
