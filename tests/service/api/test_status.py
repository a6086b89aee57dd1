"""Metrics, model card, labels and the OpenAPI document."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus

from model._version import __version__
from model.labels import CLASS_NAMES, SUPERCLASSES
from service.api import schemas
from service.observe.metrics import metric_names
from service.pictures import decoding
from tests.service.conftest import Running
from tests.support.doubles import POISON, picture

pytestmark = pytest.mark.anyio
Start = Callable[..., Awaitable[Running]]
JPEG = {"Content-Type": "image/jpeg"}


async def test_metrics_count_what_happened(start: Start) -> None:
    app = await start()
    for value in (7, 7, 8, POISON):
        await app.client.post("/classify", content=picture(value), headers=JPEG)
    await app.client.post("/classify", content=b"text", headers=JPEG)
    await app.client.get("/nowhere/1")
    await app.client.get("/nowhere/2")
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in prometheus((await app.client.get("/metrics")).text)
        for sample in family.samples
    }
    expected = {
        ("freqmerge_http_requests_total", "200", "/classify"): 3,
        ("freqmerge_http_requests_total", "500", "/classify"): 1,
        ("freqmerge_http_requests_total", "415", "/classify"): 1,
        ("freqmerge_http_requests_total", "404", "unmatched"): 2,
        ("freqmerge_http_request_duration_seconds_count", "/classify"): 5,
        ("freqmerge_stage_duration_seconds_count", "read"): 5,
        ("freqmerge_stage_duration_seconds_count", "decode"): 5,
        ("freqmerge_stage_duration_seconds_count", "engine"): 3,
        ("freqmerge_stage_duration_seconds_count", "encode"): 3,
        ("freqmerge_batch_size_count",): 3,
        ("freqmerge_batch_size_sum",): 3,
        ("freqmerge_images_admitted_total",): 5,
        ("freqmerge_images_total", "answered"): 3,
        ("freqmerge_images_total", "failed"): 2,
        ("freqmerge_images_total", "cancelled"): 0,
        ("freqmerge_images_total", "expired"): 0,
        ("freqmerge_rejected_total", "unsupported_format"): 1,
        ("freqmerge_rejected_total", "engine_failed"): 1,
        ("freqmerge_rejected_total", "route_not_found"): 2,
        ("freqmerge_rejected_total", "queue_full"): 0,
        ("freqmerge_predictions_total", CLASS_NAMES[7]): 2,
        ("freqmerge_predictions_total", CLASS_NAMES[8]): 1,
        ("freqmerge_predictions_total", CLASS_NAMES[9]): 0,
        ("freqmerge_queue_images",): 0,
        ("freqmerge_queue_limit_images",): 256,
        ("freqmerge_ready",): 1,
    }
    assert {key: found.get(key) for key in expected} == expected
    assert found["freqmerge_executor_busy_seconds_total",] > 0
    assert ("process_resident_memory_bytes",) in found
    assert ("python_gc_objects_collected_total", "0") in found


async def test_metrics_come_as_openmetrics_to_those_who_ask(client: httpx.AsyncClient) -> None:
    answer = await client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    info = {family.name: family for family in openmetrics(answer.text)}["freqmerge_model"]
    assert info.samples[0].labels == {
        "name": "double",
        "digest": "0" * 64,
        "engine": "fake",
        "device": "cpu",
        "precision": "fp32",
        "keep_rate": "0.7",
        "version": __version__,
    }


async def test_metrics_have_base_units_one_prefix_and_a_help_text(start: Start) -> None:
    app = await start()
    units = ("_total", "_seconds", "_bytes", "_images", "_info", "_size", "_ready", "_in_flight")
    assert all(name.endswith(units) for name in metric_names(app.service.metrics.registry))
    ours = [family for family in app.service.metrics.registry.collect() if family.name.startswith("freqmerge")]
    assert all(len(family.documentation) > 10 for family in ours)


async def test_labels_of_metrics_are_closed_sets(start: Start) -> None:
    app = await start()
    for path in ("/a", "/b/c", "/heatmap?image_id=1", "/heatmap?image_id=2"):
        await app.client.get(path)
    families = {family.name: family for family in app.service.metrics.registry.collect()}
    routes = {sample.labels["route"] for sample in families["freqmerge_http_requests"].samples}
    assert routes == {"unmatched", "/heatmap"}


async def test_the_model_card_says_what_is_served(start: Start) -> None:
    app = await start(keep_rate=1.0, max_batch_size=4)
    body = (await app.client.get("/model")).json()
    found = schemas.ModelCard.model_validate(body)
    assert (found.name, found.digest, found.classes, found.parameters) == ("double", "0" * 64, 100, 123)
    assert (found.schedule, found.grid, found.native_size) == ([6, 5, 5, 4], (2, 3), 8)
    assert (found.top1, found.top5) == (0.5, 0.75)
    assert found.scores == {"top1": 0.5, "top5": 0.75}
    assert found.overrides == {"keep_rate": 1.0}
    assert found.engine == schemas.EngineCard(
        kind="fake", device="cpu", precision="fp32", reason="a double", max_batch_size=4
    )
    assert found.config["merge_layers"] == [1, 3]
    assert found.limits.max_upload_bytes == 10 << 20


async def test_the_version_is_the_one_of_the_package(client: httpx.AsyncClient) -> None:
    assert (await client.get("/model")).json()["service_version"] == __version__


async def test_the_formats_that_the_model_card_names_are_those_that_are_decoded(client: httpx.AsyncClient) -> None:
    assert (await client.get("/model")).json()["limits"]["formats"] == list(decoding.FORMATS)


async def test_all_labels_are_listed_by_id(client: httpx.AsyncClient) -> None:
    found = schemas.Labels.model_validate((await client.get("/labels")).json()).labels
    assert [label.class_id for label in found] == list(range(100))
    assert [label.label for label in found] == list(CLASS_NAMES)
    assert [label.superclass for label in found] == list(SUPERCLASSES)


@pytest.mark.parametrize("path", ["/live", "/ready", "/metrics", "/model", "/labels"])
async def test_probes_may_ask_for_the_head_only(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.head(path)).status_code == 200


async def test_the_root_is_a_page_that_leads_to_the_documentation_relative_to_any_prefix(
    client: httpx.AsyncClient,
) -> None:
    answer = await client.get("/")
    assert answer.status_code == 200
    assert 'href="docs"' in answer.text
    assert "swagger" in (await client.get("/docs")).text


async def test_answers_may_not_be_sniffed_as_something_else(client: httpx.AsyncClient) -> None:
    assert (await client.get("/live")).headers["x-content-type-options"] == "nosniff"


# --- OpenAPI ---


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


@pytest.fixture
async def document(client: httpx.AsyncClient) -> dict[str, Any]:
    found: dict[str, Any] = (await client.get("/openapi.json")).json()
    return found


async def test_the_document_names_every_route(document: dict[str, Any]) -> None:
    routes = {(path, method) for path, methods in document["paths"].items() for method in methods}
    assert routes == {
        ("/classify", "post"),
        ("/classify/batch", "post"),
        ("/heatmap", "get"),
        ("/heatmap", "post"),
        ("/live", "get"),
        ("/ready", "get"),
        ("/model", "get"),
        ("/labels", "get"),
        ("/metrics", "get"),
        ("/v2", "get"),
        ("/v2/health/live", "get"),
        ("/v2/health/ready", "get"),
        ("/v2/models/{model_name}", "get"),
        ("/v2/models/{model_name}/versions/{model_version}", "get"),
        ("/v2/models/{model_name}/ready", "get"),
        ("/v2/models/{model_name}/versions/{model_version}/ready", "get"),
        ("/v2/models/{model_name}/config", "get"),
        ("/v2/models/{model_name}/versions/{model_version}/config", "get"),
        ("/v2/models/stats", "get"),
        ("/v2/models/{model_name}/stats", "get"),
        ("/v2/models/{model_name}/versions/{model_version}/stats", "get"),
        ("/v2/repository/index", "post"),
        ("/v2/models/{model_name}/infer", "post"),
        ("/v2/models/{model_name}/versions/{model_version}/infer", "post"),
    }


async def test_every_reference_in_the_document_leads_somewhere(document: dict[str, Any]) -> None:
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    found = set(references(document))
    assert found
    assert found <= known


@pytest.mark.parametrize("path", ["/classify", "/heatmap"])
async def test_a_body_is_documented_as_a_binary_picture_and_as_a_form(document: dict[str, Any], path: str) -> None:
    body = document["paths"][path]["post"]["requestBody"]
    assert body["required"] is True
    content = body["content"]
    assert content["image/jpeg"]["schema"] == {"type": "string", "format": "binary"}
    assert content["multipart/form-data"]["schema"]["properties"]["file"]["format"] == "binary"


async def test_problems_are_documented_with_their_media_type(document: dict[str, Any]) -> None:
    answers = document["paths"]["/classify"]["post"]["responses"]
    assert set(answers) == {"200", "401", "408", "413", "415", "422", "429", "500", "503", "504"}
    for status, answer in answers.items():
        media = "application/json" if status == "200" else "application/problem+json"
        name = "Classification" if status == "200" else "Problem"
        assert answer["content"] == {media: {"schema": {"$ref": f"#/components/schemas/{name}"}}}


async def test_top_k_is_documented_with_its_range(document: dict[str, Any]) -> None:
    [parameter, timeout] = document["paths"]["/classify"]["post"]["parameters"]
    assert (parameter["name"], parameter["schema"]["minimum"], parameter["schema"]["maximum"]) == ("top_k", 1, 100)
    assert parameter["schema"]["default"] == 5
    assert (timeout["name"], timeout["in"], timeout["schema"]["minimum"]) == ("X-Request-Timeout-Ms", "header", 1)


async def test_keys_are_documented_where_they_may_be_asked_for(document: dict[str, Any]) -> None:
    assert set(document["components"]["securitySchemes"]) == {"bearer", "header"}
    guarded = {path for path, methods in document["paths"].items() for found in methods.values() if "security" in found}
    assert set(document["paths"]) - guarded == {"/live", "/ready", "/metrics", "/v2/health/live", "/v2/health/ready"}
    answers = document["paths"]["/v2"]["get"]["responses"]["401"]["content"]
    assert answers == {"application/json": {"schema": {"$ref": "#/components/schemas/InferenceError"}}}


@pytest.mark.parametrize("path", ["/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/double"])
async def test_the_inference_protocol_answers_a_head_request(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.head(path)).status_code == 200


async def test_no_operation_has_the_name_of_another(document: dict[str, Any]) -> None:
    names = [found["operationId"] for path in document["paths"].values() for found in path.values()]
    assert len(names) == len(set(names))
    assert "classify" in names
