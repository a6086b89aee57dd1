"""The OpenAPI document: kept in the repository, and true of the running app, as schemathesis finds by trying."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks

from service import openapi_file
from service.app import create_app
from service.settings import Settings
from tests.support.doubles import FakeEngine, loader
from tests.support.live import serving
from tests.support.paths import ROOT

KEPT = ROOT / "docs" / "openapi.json"


def test_the_kept_document_is_that_of_this_version() -> None:
    found = KEPT.read_text(encoding="utf-8")
    assert found == openapi_file.text(), "write it anew: .venv/bin/python -m service.openapi_file > docs/openapi.json"


def test_no_setting_changes_the_document(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREQMERGE_API_KEYS", "key-0123456789")
    monkeypatch.setenv("FREQMERGE_PORT", "no port")
    assert openapi_file.text() == KEPT.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def document() -> Iterator[Any]:
    """The document of an app with a fake engine, on a real socket."""
    app = create_app(Settings(max_upload_bytes=100_000, max_batch_upload_bytes=100_000), loader(FakeEngine()))
    with serving(app) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


PATHS: dict[str, dict[str, Any]] = json.loads(KEPT.read_text(encoding="utf-8"))["paths"]
OPERATIONS = [(path, method) for path, methods in PATHS.items() for method in methods]
REFUSING = [(path, method) for path, method in OPERATIONS if method == "post" or path == "/heatmap"]
"""Operations with something to get wrong."""


@pytest.mark.parametrize(
    ("path", "method", "mode"),
    [
        *((path, method, GenerationMode.POSITIVE) for path, method in OPERATIONS),
        *((path, method, GenerationMode.NEGATIVE) for path, method in REFUSING),
    ],
)
def test_every_route_answers_as_documented_whatever_it_is_asked(
    document: Any, path: str, method: str, mode: GenerationMode
) -> None:
    @settings(max_examples=12, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=document[path][method].as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        if case.path_parameters:
            case.path_parameters = {"model_name": "double", "model_version": "1"}
        answer = case.call()
        hurried = "X-Request-Timeout-Ms" in (case.headers or {})
        assert answer.status_code < 500 or (hurried and answer.status_code == 504), answer.text
        # Judged above; and no schema can say what a picture is, nor that tensors do not contradict each other.
        excluded = [schemathesis.checks.not_a_server_error, checks.positive_data_acceptance]
        if path not in ("/classify", "/heatmap"):  # a field of a form is a file to us, whatever type it was to be
            excluded.append(checks.negative_data_rejection)
        case.validate_response(answer, excluded_checks=excluded)

    ask()
