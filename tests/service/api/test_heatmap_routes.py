"""GET and POST /heatmap: the drawing of a picture, and its numbers."""

from __future__ import annotations

import io
from collections.abc import Awaitable, Callable
from typing import get_args

import httpx
import numpy as np
import pytest
from PIL import Image

from model.config import SCORE_NAMES
from service.api.schemas import HeatmapData
from service.batching.batcher import Counts
from service.pictures.heatmap import View
from tests.service.conftest import Running, until
from tests.support.doubles import ENERGY, GRID, MERGE_LAYERS, SCORE, SOURCE_MAP, SOURCE_MAPS, FakeEngine, picture
from tests.support.wire import problem

pytestmark = pytest.mark.anyio
Start = Callable[..., Awaitable[Running]]
JPEG = {"Content-Type": "image/jpeg"}


def opened(answer: httpx.Response) -> Image.Image:
    assert answer.status_code == 200, answer.text
    return Image.open(io.BytesIO(answer.content))


async def classified(client: httpx.AsyncClient, data: bytes) -> str:
    answer = await client.post("/classify", content=data, headers=JPEG)
    return str(answer.json()["heatmap_url"])


async def test_the_overlay_has_the_size_of_the_users_own_picture(client: httpx.AsyncClient) -> None:
    url = await classified(client, picture(90, (640, 480)))
    drawing = opened(await client.get(url))
    assert (drawing.format, drawing.mode, drawing.size) == ("PNG", "RGB", (640, 480))
    left, right = (np.asarray(drawing.convert("RGB")).astype(int)[y, x] for x, y in ((90, 10), (549, 469)))
    assert left[2] > 100 > left[0], "jet paints the lowest score blue"
    assert right[0] > 90 > right[2], "and the highest red"


async def test_size_reduces_a_larger_picture_and_never_enlarges_one(client: httpx.AsyncClient) -> None:
    url = await classified(client, picture(90, (640, 480)))
    assert opened(await client.get(f"{url}&size=320")).size == (320, 240)
    assert opened(await client.get(f"{url}&size=2000")).size == (640, 480)


async def test_opacity_zero_is_the_picture_itself(client: httpx.AsyncClient) -> None:
    url = await classified(client, picture(90, (256, 256)))
    drawing = np.asarray(opened(await client.get(f"{url}&opacity=0")).convert("RGB"))
    assert np.unique(drawing).tolist() == [90]


@pytest.mark.parametrize("view", get_args(View))
@pytest.mark.parametrize("format", ["png", "webp", "jpeg"])
@pytest.mark.parametrize("score", SCORE_NAMES)
async def test_every_view_comes_in_every_format_and_of_both_scores(
    client: httpx.AsyncClient, view: str, format: str, score: str
) -> None:
    url = f"/heatmap?view={view}&format={format}&size=300&score={score}"
    answer = await client.post(url, content=picture(90, (320, 240)))
    assert answer.headers["content-type"] == f"image/{format}"
    drawing = opened(answer)
    assert drawing.format == format.upper()
    assert max(drawing.size) <= 300


async def test_a_posted_picture_gets_the_same_heatmap_as_a_classified_one_and_is_not_kept(
    start: Start,
) -> None:
    app = await start()
    data = picture(90, (64, 48))
    url = await classified(app.client, data)
    posted = await app.client.post("/heatmap", files={"file": data})
    assert posted.content == (await app.client.get(url)).content
    assert app.service.store.held.images == 1
    assert app.service.batcher.counts == Counts(admitted=2, answered=2)


async def test_json_gives_the_numbers_in_rows(client: httpx.AsyncClient) -> None:
    url = await classified(client, picture(90))
    answer = await client.get(f"{url}&format=json")
    assert answer.headers["content-type"] == "application/json"
    numbers = HeatmapData.model_validate(answer.json())
    assert numbers.grid == GRID
    assert np.allclose(numbers.score, SCORE.reshape(GRID))
    assert numbers.source_map == SOURCE_MAP.reshape(GRID).tolist()
    assert [merge.layer for merge in numbers.merges] == list(MERGE_LAYERS)
    assert [merge.tokens for merge in numbers.merges] == [5, 4]
    assert [merge.source_map for merge in numbers.merges] == SOURCE_MAPS.reshape(-1, *GRID).tolist()


@pytest.mark.parametrize("view", get_args(View))
async def test_the_score_decides_what_is_drawn_where_a_score_is_drawn_and_lfgm_is_the_default(
    client: httpx.AsyncClient, view: str
) -> None:
    data = picture(90, (640, 480))
    url = f"{await classified(client, data)}&view={view}"
    unnamed, lfgm, energy = [
        opened(await client.get(f"{url}{score}")).tobytes() for score in ("", "&score=lfgm", "&score=energy")
    ]
    assert unnamed == lfgm
    assert (lfgm != energy) == (view in ("overlay", "score", "panel"))
    posted = await client.post(f"/heatmap?view={view}&score=energy", content=data)
    assert opened(posted).tobytes() == energy


async def test_the_numbers_name_their_score(client: httpx.AsyncClient) -> None:
    url = f"{await classified(client, picture(90))}&format=json"
    for query, name, values in (
        ("", "lfgm", SCORE),
        ("&score=lfgm", "lfgm", SCORE),
        ("&score=energy", "energy", ENERGY),
    ):
        for answer in (
            await client.get(url + query),
            await client.post(f"/heatmap?format=json{query}", content=picture(90)),
        ):
            numbers = HeatmapData.model_validate(answer.json())
            assert numbers.score_name == name
            assert np.allclose(numbers.score, values.reshape(GRID))
            assert numbers.source_map == SOURCE_MAP.reshape(GRID).tolist()


async def test_an_unknown_score_is_refused(client: httpx.AsyncClient) -> None:
    refused = problem(await client.post("/heatmap?score=entropy", content=picture(90)), 422, "bad_parameter")
    assert refused["errors"][0]["parameter"] == "score"
    assert "lfgm" in refused["detail"]
    assert "energy" in refused["detail"]


async def test_a_layer_picks_the_merging_block_whose_tokens_are_drawn_and_the_last_is_the_default(
    client: httpx.AsyncClient,
) -> None:
    url = f"{await classified(client, picture(90, (64, 48)))}&view=merged"
    drawings = [opened(await client.get(f"{url}{layer}")).tobytes() for layer in ("", "&layer=1", "&layer=3")]
    assert drawings[0] == drawings[2] != drawings[1]
    numbers = [(await client.get(f"{url}&format=json{layer}")).json() for layer in ("&layer=1", "&layer=3")]
    assert [found["source_map"] for found in numbers] == SOURCE_MAPS.reshape(-1, *GRID).tolist()


@pytest.mark.parametrize("layer", ["2", "4", "-1", "first"])
async def test_a_layer_in_which_nothing_merges_is_refused(client: httpx.AsyncClient, layer: str) -> None:
    url = await classified(client, picture(90))
    refused = problem(await client.get(f"{url}&view=merged&layer={layer}"), 422, "bad_parameter")
    assert refused["errors"][0]["parameter"] == "layer"
    assert refused["errors"][0]["found"] == layer


async def test_a_browser_may_keep_a_drawing_as_long_as_the_picture_is_kept(start: Start) -> None:
    app = await start(store_ttl_s=120)
    url = await classified(app.client, picture(90))
    assert (await app.client.get(url)).headers["cache-control"] == "private, max-age=120"


async def test_a_picture_that_left_the_store_is_not_found_and_the_problem_says_what_to_do(
    start: Start,
) -> None:
    app = await start(store_max_images=1)
    first = await classified(app.client, picture(90))
    await classified(app.client, picture(91))
    refused = problem(await app.client.get(first), 404, "unknown_image")
    assert "POST /heatmap" in refused["detail"]


async def test_the_head_of_a_drawing_can_be_asked_for(client: httpx.AsyncClient) -> None:
    url = await classified(client, picture(90))
    answer = await client.head(url)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")


async def test_drawings_beyond_the_limit_are_refused_at_once(start: Start) -> None:
    app = await start(max_queue_size=1)
    url = await classified(app.client, picture(90))
    app.service.pool.pending = 1
    answer = await app.client.get(url)
    problem(answer, 429, "queue_full")
    app.service.pool.pending = 0


async def test_drawing_and_encoding_show_up_as_a_stage(client: httpx.AsyncClient) -> None:
    url = await classified(client, picture(90))
    assert (await client.get(url)).headers["server-timing"].startswith("draw;dur=")


async def test_stored_images_are_counted_and_forgotten_at_shutdown(start: Start, engine: FakeEngine) -> None:
    app = await start()
    await classified(app.client, picture(90))
    assert app.service.store.held.images == 1
    sample = app.service.metrics.registry.get_sample_value
    await until(lambda: sample("freqmerge_stored_images") == 1)
    assert sample("freqmerge_stored_bytes") == app.service.store.held.size_bytes
    await app.service.close()
    assert app.service.store.held.images == 0
