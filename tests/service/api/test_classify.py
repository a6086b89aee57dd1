"""POST /classify, and what a client can do right."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from urllib.parse import urljoin

import httpx
import pytest
from pydantic import TypeAdapter

from model.labels import CLASS_NAMES, SUPERCLASSES
from service.api.schemas import Classification
from tests.service.conftest import Running, entered, running, until
from tests.support.doubles import FakeEngine, loader, picture
from tests.support.wire import json_of

pytestmark = pytest.mark.anyio
Start = Callable[..., Awaitable[Running]]
JPEG = {"Content-Type": "image/jpeg"}


async def test_a_picture_gets_five_labels_the_most_probable_first(client: httpx.AsyncClient) -> None:
    answer = await client.post("/classify", content=picture(7), headers=JPEG)
    assert answer.status_code == 200
    found = TypeAdapter(Classification).validate_python(json_of(answer.text), strict=True)
    assert [prediction["class_id"] for prediction in found["predictions"]] == [7, 0, 1, 2, 3]
    best = found["predictions"][0]
    assert (best["label"], best["superclass"]) == (CLASS_NAMES[7], SUPERCLASSES[7])
    assert best["probability"] == pytest.approx(2.718282 / (2.718282 + 99), abs=1e-6)
    assert found["predictions"][1]["probability"] == pytest.approx(1 / (2.718282 + 99), abs=1e-6)
    assert found["model"]["digest"] == "0" * 64
    assert list(found["timings_ms"]) == ["read", "decode", "queue", "copy", "engine"]


SHARE = 0.026724
"""Best probability of the double's answers."""


@pytest.mark.parametrize(
    ("certain_from", "certain"), [(None, None), (0.0, True), (SHARE, True), (0.0268, False), (1.0, False)]
)
async def test_an_answer_below_the_checkpoints_threshold_is_uncertain_and_says_so_in_its_warnings(
    engine: FakeEngine, certain_from: float | None, certain: bool | None
) -> None:
    async with running(loader(engine, certain_from)) as app:
        found = (await app.client.post("/classify", content=picture(7))).json()
        [result] = (await app.client.post("/classify/batch", files={"file": picture(7)})).json()["results"]
        card = (await app.client.get("/model")).json()
    assert found["predictions"][0]["probability"] == SHARE
    assert found["certain"] is result["certain"] is certain
    told = [
        f"the answer is uncertain: its best probability, {SHARE}, is below {certain_from:g}; the picture may show none "
        "of the 100 classes"
        for _ in range(certain is False)
    ]
    assert found["warnings"] == result["warnings"] == told
    assert card["certain_from"] == certain_from


async def test_a_damaged_file_and_an_uncertain_answer_are_two_warnings(engine: FakeEngine) -> None:
    whole = picture(90, (64, 64), "JPEG")
    async with running(loader(engine, 0.5)) as app:
        first, second = (await app.client.post("/classify", content=whole[:-2])).json()["warnings"]
    assert first.startswith("the file is cut off")
    assert second.startswith("the answer is uncertain")


@pytest.mark.parametrize(("top_k", "count"), [(1, 1), (100, 100)])
async def test_top_k_says_how_many_labels(client: httpx.AsyncClient, top_k: int, count: int) -> None:
    answer = await client.post(f"/classify?top_k={top_k}", content=picture(7), headers=JPEG)
    predictions = answer.json()["predictions"]
    assert len(predictions) == count
    if count == 100:
        assert sum(prediction["probability"] for prediction in predictions) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    "declared", ["image/png", "application/octet-stream", "application/x-www-form-urlencoded", None]
)
async def test_the_first_bytes_decide_what_a_raw_body_is_not_the_declared_type(
    client: httpx.AsyncClient, declared: str | None
) -> None:
    headers = {"Content-Type": declared} if declared else {}
    answer = await client.post("/classify", content=picture(9, format="GIF"), headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.json()["predictions"][0]["class_id"] == 9


async def test_a_form_field_named_file_is_taken_whatever_its_file_is_called(client: httpx.AsyncClient) -> None:
    answer = await client.post("/classify", files={"file": ("Grüße.png", picture(11), "image/png")})
    assert answer.json()["predictions"][0]["class_id"] == 11


async def test_a_picture_that_holds_the_boundary_of_its_form_survives(client: httpx.AsyncClient) -> None:
    data = picture(12) + b"\r\n--boundar\r\n--boundary"[:-1]
    body = (
        b'--boundary\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
        + data
        + b"\r\n--boundary--\r\n"
    )
    answer = await client.post(
        "/classify", content=body, headers={"Content-Type": "multipart/form-data; boundary=boundary"}
    )
    assert answer.json()["predictions"][0]["class_id"] == 12


@pytest.mark.parametrize("prefix", ["", "/behind/a/proxy"])
async def test_the_heatmap_url_is_relative_and_resolves_behind_a_proxy_prefix(
    client: httpx.AsyncClient, prefix: str
) -> None:
    body = (await client.post("/classify", content=picture(7), headers=JPEG)).json()
    resolved = urljoin(f"http://public{prefix}/classify", body["heatmap_url"])
    assert resolved == f"http://public{prefix}/heatmap?image_id={body['image_id']}"
    assert (await client.get(resolved.removeprefix(f"http://public{prefix}"))).status_code == 200


async def test_every_classification_has_an_id_of_its_own_that_nobody_can_guess(
    client: httpx.AsyncClient,
) -> None:
    ids = {(await client.post("/classify", content=picture(7), headers=JPEG)).json()["image_id"] for _ in range(3)}
    assert len(ids) == 3
    assert all(len(image_id) == 22 for image_id in ids)


async def test_without_a_store_there_is_no_id_and_no_heatmap_url(start: Start) -> None:
    app = await start(store_max_images=0)
    body = (await app.client.post("/classify", content=picture(7), headers=JPEG)).json()
    assert (body["image_id"], body["heatmap_url"]) == (None, None)
    assert app.service.store.held.images == 0


async def test_the_stages_of_a_request_are_in_its_server_timing_header(client: httpx.AsyncClient) -> None:
    answer = await client.post("/classify", content=picture(7), headers=JPEG)
    stages = dict(part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
    assert list(stages) == ["read", "decode", "queue", "copy", "engine", "encode"]
    assert all(0 <= float(milliseconds) < 20_000 for milliseconds in stages.values())


async def test_a_request_id_comes_back_and_a_harmful_one_is_replaced(client: httpx.AsyncClient) -> None:
    given = await client.get("/live", headers={"X-Request-ID": "order-66"})
    assert given.headers["x-request-id"] == "order-66"
    for harmful in ("a b", "x" * 129, "<script>", ""):
        replaced = (await client.get("/live", headers={"X-Request-ID": harmful})).headers["x-request-id"]
        assert len(replaced) == 16
        int(replaced, 16)


async def test_pictures_sent_at_once_share_a_batch_and_each_gets_its_own_label(
    start: Start, engine: FakeEngine
) -> None:
    app = await start()
    engine.hold()
    first = asyncio.create_task(app.client.post("/classify", content=picture(50), headers=JPEG))
    await entered(engine)
    values = [51, 52, 53, 54]
    rest = [asyncio.create_task(app.client.post("/classify", content=picture(value), headers=JPEG)) for value in values]
    await until(lambda: app.service.batcher._queue._waiting.__len__() == 4)
    engine.release()
    answers = await asyncio.gather(first, *rest)
    assert [answer.json()["predictions"][0]["class_id"] for answer in answers] == [50, *values]
    assert sorted(engine.batches[-1]) == values


async def test_a_request_without_a_query_gets_the_same_as_one_that_spells_out_the_default(
    client: httpx.AsyncClient,
) -> None:
    plain, spelt = [await client.post(path, content=picture(9)) for path in ("/classify", "/classify?top_k=5")]
    assert plain.status_code == spelt.status_code == 200
    assert plain.json()["predictions"] == spelt.json()["predictions"]
    assert set(plain.headers) == set(spelt.headers)
