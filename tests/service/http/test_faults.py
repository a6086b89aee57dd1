"""Query parameters and form fields that a route does not have."""

from __future__ import annotations

import httpx
import pytest

from tests.support.doubles import picture
from tests.support.wire import problem

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("method", "path", "words"),
    [
        ("POST", "/classify?topk=3", "topk: expected top_k"),
        ("POST", "/classify?TOP_K=3", "TOP_K: expected top_k"),
        ("POST", "/classify?top_k=3&verbose", "verbose: expected one of top_k, found an unknown parameter; see"),
        ("POST", "/classify/batch?top-k=3", "top-k: expected top_k"),
        ("GET", "/heatmap?image_id=x&colour_map=jet", "colour_map: expected colormap"),
        ("GET", "/heatmap?image_id=x&vew=score", "vew: expected view"),
        (
            "POST",
            "/heatmap?image_id=x",
            "image_id: expected one of view, score, colormap, layer, opacity, size, format",
        ),
    ],
)
async def test_a_misspelt_parameter_is_refused_with_the_one_that_was_meant(
    client: httpx.AsyncClient, method: str, path: str, words: str
) -> None:
    refused = problem(await client.request(method, path, content=picture(7)), 422, "bad_parameter")
    assert words in refused["detail"]
    [fault] = refused["errors"]
    assert words.startswith(f"{fault['parameter']}: expected {fault['expected']}")


async def test_every_unknown_parameter_is_named_shortened_and_only_the_first_eight(client: httpx.AsyncClient) -> None:
    query = "&".join(f"{'x' * 100}{index}=1" for index in range(20))
    refused = problem(await client.post(f"/classify?{query}", content=picture(7)), 422, "bad_parameter")
    assert len(refused["errors"]) == 8
    assert len(refused["detail"]) < 1000


async def test_a_probe_may_carry_whatever_its_monitor_adds(client: httpx.AsyncClient) -> None:
    assert (await client.get("/live?nocache=123")).status_code == 200


@pytest.mark.parametrize("path", ["/classify", "/classify/batch", "/heatmap"])
async def test_a_form_field_that_nobody_reads_is_refused_with_its_name_and_the_known_ones(
    client: httpx.AsyncClient, path: str
) -> None:
    answer = await client.post(path, files={"file": ("a.png", picture(7))}, data={"top_k": "3"})
    refused = problem(answer, 422, "bad_parameter")
    assert refused["detail"].startswith("top_k: expected one of file, found an unknown form field; ")
    assert refused["errors"] == [{"parameter": "top_k", "expected": "one of file", "found": "3"}]


async def test_a_misspelt_form_field_beside_the_picture_is_told_the_one_that_was_meant(
    client: httpx.AsyncClient,
) -> None:
    parts = [("file", ("a.png", picture(7))), ("File", ("b.png", picture(8)))]
    refused = problem(await client.post("/classify/batch", files=parts), 422, "bad_parameter")
    assert [(fault["parameter"], fault["expected"]) for fault in refused["errors"]] == [("File", "file")]


async def test_every_unknown_form_field_is_named_shortened_and_only_the_first_eight(client: httpx.AsyncClient) -> None:
    fields = {f"{'x' * 100}{index}": "v" * 200 for index in range(20)}
    answer = await client.post("/classify", files={"file": ("a.png", picture(7))}, data=fields)
    refused = problem(answer, 422, "bad_parameter")
    assert [(len(fault["parameter"]), len(fault["found"])) for fault in refused["errors"]] == [(40, 100)] * 8
    assert len(refused["detail"]) < 1000


async def test_a_wrong_value_and_an_unknown_parameter_are_told_together(client: httpx.AsyncClient) -> None:
    refused = problem(await client.post("/classify?top_k=0&topk=3", content=picture(7)), 422, "bad_parameter")
    assert [fault["parameter"] for fault in refused["errors"]] == ["top_k", "topk"]
