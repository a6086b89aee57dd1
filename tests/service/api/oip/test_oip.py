"""The Open Inference Protocol: what it takes, what it gives, and how it refuses."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import CounterMetricFamily
from pydantic import SecretStr
from tritonclient.grpc import model_config_pb2

from model._version import __version__
from model.labels import CLASS_NAMES
from service.api.oip import metadata, schemas
from service.api.oip.request import Contract, parse
from service.api.oip.statistics import statistics
from service.batching.batcher import Counts
from service.errors import BadInference
from tests.service.conftest import Running
from tests.support.doubles import ENERGY, NATIVE, POISON, SCORE, SOURCE_MAP, FakeEngine, picture, pixels, served
from tests.support.wire import json_of

pytestmark = pytest.mark.anyio
Start = Callable[..., Awaitable[Running]]
INFER = "/v2/models/double/infer"


def image(*files: bytes) -> dict[str, Any]:
    data = [base64.b64encode(file).decode() for file in files]
    return {"name": "image", "datatype": "BYTES", "shape": [len(files)], "data": data}


def tensor(*values: int) -> dict[str, Any]:
    levels = np.stack([pixels(value) for value in values])
    return {"name": "pixels", "datatype": "UINT8", "shape": list(levels.shape), "data": levels.ravel().tolist()}


def elements(*files: bytes) -> bytes:
    return b"".join(len(file).to_bytes(4, "little") + file for file in files)


async def ask(client: httpx.AsyncClient, *inputs: dict[str, Any], **members: Any) -> httpx.Response:
    return await client.post(INFER, json={"inputs": inputs, **members})


async def ask_binary(client: httpx.AsyncClient, head: dict[str, Any], raw: bytes) -> httpx.Response:
    text = json.dumps(head).encode()
    headers = {"Inference-Header-Content-Length": str(len(text)), "Content-Type": "application/octet-stream"}
    return await client.post(INFER, content=text + raw, headers=headers)


def outputs(answer: httpx.Response) -> dict[str, dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    found = json_of(answer.text)
    schemas.InferenceResponse.model_validate(found)
    assert (found["model_name"], found["model_version"]) == ("double", "1")
    return {output["name"]: output for output in found["outputs"]}


def refusal(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["error"]
    return str(answer.json()["error"])


# --- metadata and health ---


async def test_the_server_says_what_it_is_and_which_extensions_it_has(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v2")).json() == {
        "name": "freqmerge",
        "version": __version__,
        "extensions": ["binary_tensor_data", "classification", "model_configuration", "statistics"],
    }


@pytest.mark.parametrize("path", ["/v2/models/double", "/v2/models/double/versions/1"])
async def test_the_model_says_what_it_takes_and_what_it_gives(client: httpx.AsyncClient, path: str) -> None:
    found = (await client.get(path)).json()
    schemas.ModelMetadata.model_validate(found)
    assert (found["name"], found["versions"], found["platform"]) == ("double", ["1"], "freqmerge_fake")
    assert [(given["name"], given["datatype"], given["shape"]) for given in found["inputs"]] == [
        ("image", "BYTES", [-1]),
        ("pixels", "UINT8", [-1, 3, NATIVE, NATIVE]),
    ]
    assert [(given["name"], given["datatype"], given["shape"]) for given in found["outputs"]] == [
        ("probabilities", "FP32", [-1, 100]),
        ("logits", "FP32", [-1, 100]),
        ("label", "BYTES", [-1]),
        ("frequency_score", "FP32", [-1, 6]),
        ("energy", "FP32", [-1, 6]),
        ("source_map", "INT64", [-1, 6]),
    ]


@pytest.mark.parametrize("path", ["/v2/models/other", "/v2/models/double/versions/2", "/v2/models/other/ready"])
async def test_another_model_or_version_is_not_found(client: httpx.AsyncClient, path: str) -> None:
    assert "expected model 'double', version '1'" in refusal(await client.get(path), 404)


async def test_health_follows_the_service(start: Start) -> None:
    app = await start()
    paths = ("/v2/health/live", "/v2/health/ready", "/v2/models/double/ready", "/v2/models/double/versions/1/ready")
    answers = [(await app.client.get(path)).json() for path in paths]
    assert answers == [{"live": True}, {"ready": True}, *[{"name": "double", "ready": True}] * 2]
    app.service.announce_shutdown()
    found = [await app.client.get(path) for path in paths]
    assert [answer.status_code for answer in found] == [200, 503, 503, 503]
    assert "shutting down" in refusal(found[1], 503)
    assert int(found[1].headers["retry-after"]) >= 1


# --- inference ---


async def test_encoded_pictures_get_every_output(client: httpx.AsyncClient) -> None:
    answer = await ask(client, image(picture(7), picture(9)), id="order-66")
    assert answer.json()["id"] == "order-66"
    found = outputs(answer)
    assert {name: (output["datatype"], output["shape"]) for name, output in found.items()} == {
        "probabilities": ("FP32", [2, 100]),
        "logits": ("FP32", [2, 100]),
        "label": ("BYTES", [2]),
        "frequency_score": ("FP32", [2, 6]),
        "energy": ("FP32", [2, 6]),
        "source_map": ("INT64", [2, 6]),
    }
    assert found["label"]["data"] == [CLASS_NAMES[7], CLASS_NAMES[9]]
    logits = np.reshape(found["logits"]["data"], (2, 100))
    assert (logits.argmax(axis=1).tolist(), logits.sum()) == ([7, 9], 2)
    shares = np.reshape(found["probabilities"]["data"], (2, 100))
    assert shares[0, 7] == pytest.approx(2.718282 / (2.718282 + 99), abs=1e-6)
    assert np.allclose(shares.sum(axis=1), 1, atol=1e-5)
    assert np.allclose(found["frequency_score"]["data"], [*SCORE, *SCORE])
    assert np.allclose(found["energy"]["data"], [*ENERGY, *ENERGY])
    assert found["source_map"]["data"] == [*SOURCE_MAP.tolist(), *SOURCE_MAP.tolist()]


async def test_pixels_reach_the_engine_as_they_are(start: Start, engine: FakeEngine) -> None:
    app = await start()
    found = outputs(await ask(app.client, tensor(3, 200, 5), outputs=[{"name": "label"}]))
    assert list(found) == ["label"]
    assert found["label"]["data"] == [CLASS_NAMES[3], CLASS_NAMES[0], CLASS_NAMES[5]]
    assert engine.batches == [[3, 200, 5]]
    assert app.service.batcher.counts == Counts(admitted=3, answered=3)
    assert app.service.store.held.images == 0


async def test_nested_data_are_the_same_as_flat_data(client: httpx.AsyncClient) -> None:
    nested = tensor(3) | {"data": pixels(3)[None].tolist()}
    column = image(picture(7), picture(9))
    column |= {"shape": [2, 1], "data": [[text] for text in column["data"]]}
    assert outputs(await ask(client, nested))["label"]["data"] == [CLASS_NAMES[3]]
    assert outputs(await ask(client, column))["label"]["data"] == [CLASS_NAMES[7], CLASS_NAMES[9]]


async def test_tensors_after_the_json_part_are_taken_and_given(client: httpx.AsyncClient) -> None:
    raw = elements(picture(7), picture(9, format="JPEG"))
    given = {"name": "image", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": len(raw)}}
    wanted = [
        {"name": "label", "parameters": {"binary_data": True}},
        {"name": "source_map"},
        {"name": "logits", "parameters": {"binary_data": True}},
    ]
    answer = await ask_binary(client, {"inputs": [given], "outputs": wanted}, raw)
    assert answer.headers["content-type"] == "application/octet-stream"
    split = int(answer.headers["inference-header-content-length"])
    head, rest = json_of(answer.content[:split].decode()), answer.content[split:]
    names = [CLASS_NAMES[7].encode(), CLASS_NAMES[9].encode()]
    sizes = [output.get("parameters", {}).get("binary_data_size") for output in head["outputs"]]
    assert sizes == [len(elements(*names)), None, 2 * 100 * 4]
    assert rest[: sizes[0]] == elements(*names)
    assert np.frombuffer(rest[sizes[0] :], "<f4").reshape(2, 100).argmax(axis=1).tolist() == [7, 9]
    assert "data" not in head["outputs"][0]
    assert head["outputs"][1]["data"] == [*SOURCE_MAP.tolist()] * 2


async def test_binary_data_output_asks_for_all_outputs_in_binary(client: httpx.AsyncClient) -> None:
    answer = await ask(client, tensor(3), parameters={"binary_data_output": True})
    split = int(answer.headers["inference-header-content-length"])
    head = json.loads(answer.content[:split])
    sizes = [output["parameters"]["binary_data_size"] for output in head["outputs"]]
    assert sizes == [400, 400, 4 + len(CLASS_NAMES[3]), 24, 24, 48]
    assert len(answer.content) == split + sum(sizes)


async def test_a_classification_is_the_highest_values_with_index_and_label(client: httpx.AsyncClient) -> None:
    wanted = [{"name": "logits", "parameters": {"classification": 2}}]
    found = outputs(await ask(client, tensor(3, 5), outputs=wanted))["logits"]
    assert (found["datatype"], found["shape"]) == ("BYTES", [2, 2])
    first, none = "1.000000:{0}:{1}", f"0.000000:0:{CLASS_NAMES[0]}"
    assert found["data"] == [first.format(3, CLASS_NAMES[3]), none, first.format(5, CLASS_NAMES[5]), none]


async def test_images_of_the_protocol_are_counted_by_label(start: Start) -> None:
    app = await start()
    await ask(app.client, tensor(3, 3, 5))
    sample = app.service.metrics.registry.get_sample_value
    assert sample("freqmerge_predictions_total", {"label": CLASS_NAMES[3]}) == 2
    route = "/v2/models/{model_name}/infer"
    assert sample("freqmerge_http_requests_total", {"route": route, "code": "200"}) == 1


# --- as clients write it ---


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode, base64.encodebytes])
@pytest.mark.parametrize("padding", [b"=", b""])
async def test_base64_of_either_alphabet_passes_with_and_without_padding_and_line_breaks(
    client: httpx.AsyncClient, encode: Callable[[bytes], bytes], padding: bytes
) -> None:
    files = [picture(7, size) for size in ((8, 8), (9, 8), (64, 48))] + [picture(7, format="BMP") + b"\xfb\xef\xff"]
    texts = [encode(file).replace(b"=", padding).decode() for file in files]
    assert "-" in texts[3] or "+" in texts[3]
    given = image(*files) | {"data": texts}
    assert outputs(await ask(client, given))["label"]["data"] == [CLASS_NAMES[7]] * 4


async def test_the_largest_picture_may_come_in_base64_of_short_lines(start: Start) -> None:
    app = await start(max_upload_bytes=4_000_000, max_batch_upload_bytes=8_000_000)
    file = picture(7) + bytes(4_000_000 - len(picture(7)))
    given = image(file) | {"data": [base64.encodebytes(file).decode().replace("\n", "\r\n")]}
    assert outputs(await ask(app.client, given))["label"]["data"] == [CLASS_NAMES[7]]


async def test_parameters_may_be_null_wherever_they_may_stand(client: httpx.AsyncClient) -> None:
    given = image(picture(7)) | {"parameters": None}
    wanted = [{"name": "label", "parameters": None}]
    assert outputs(await ask(client, given, outputs=wanted, parameters=None))["label"]["data"] == [CLASS_NAMES[7]]
    given |= {"parameters": {"binary_data_size": None, "shared_memory_region": None}}
    wanted = [{"name": "label", "parameters": {"binary_data": None, "classification": None}}]
    members = {"outputs": wanted, "parameters": {"binary_data_output": None}, "id": None}
    assert outputs(await ask(client, given, **members))["label"]["data"] == [CLASS_NAMES[7]]


# --- what Triton's clients ask for first ---


@pytest.mark.parametrize("path", ["/v2/models/double/config", "/v2/models/double/versions/1/config"])
async def test_the_configuration_is_one_of_triton_and_says_what_the_settings_say(start: Start, path: str) -> None:
    client = (await start(max_batch_files=16, max_queue_delay_s=0.002, max_queue_size=20)).client
    found = (await client.get(path)).json()
    config = json_format.ParseDict(found, model_config_pb2.ModelConfig())  # refuses names that Triton does not know
    assert (config.name, config.platform, config.backend) == ("double", "freqmerge_fake", "freqmerge")
    assert config.max_batch_size == 16
    types = model_config_pb2.DataType
    assert [(tensor.name, tensor.data_type, list(tensor.dims), tensor.optional) for tensor in config.input] == [
        ("image", types.TYPE_STRING, [], True),
        ("pixels", types.TYPE_UINT8, [3, NATIVE, NATIVE], True),
    ]
    assert [(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in config.output] == [
        ("probabilities", types.TYPE_FP32, [100]),
        ("logits", types.TYPE_FP32, [100]),
        ("label", types.TYPE_STRING, []),
        ("frequency_score", types.TYPE_FP32, [6]),
        ("energy", types.TYPE_FP32, [6]),
        ("source_map", types.TYPE_INT64, [6]),
    ]
    [group] = config.instance_group
    assert (group.kind, group.count, list(group.gpus)) == (model_config_pb2.ModelInstanceGroup.KIND_CPU, 1, [])
    assert config.dynamic_batching.max_queue_delay_microseconds == 2000
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 20


async def test_the_configuration_names_the_gpu(start: Start, engine: FakeEngine) -> None:
    engine.device = "cuda:1"
    [group] = (await (await start()).client.get("/v2/models/double/config")).json()["instance_group"]
    assert (group["kind"], group["gpus"]) == ("KIND_GPU", [1])


STATS = ("/v2/models/stats", "/v2/models/double/stats", "/v2/models/double/versions/1/stats")


async def test_the_statistics_are_those_of_the_metrics(start: Start) -> None:
    app = await start()
    await ask(app.client, tensor(3, 5))
    await ask(app.client, image(picture(7)))
    await ask(app.client, tensor(POISON))
    before = time.time()
    assert (await app.client.post("/classify", content=picture(9))).status_code == 200
    [stats] = (await app.client.get(STATS[0])).json()["model_stats"]
    assert (stats["name"], stats["version"], stats["batch_stats"]) == ("double", "1", [])
    assert before <= stats["last_inference"] / 1000 + 0.001 <= time.time() + 0.001
    sample = app.service.metrics.registry.get_sample_value
    assert stats["inference_count"] == sample("freqmerge_images_total", {"outcome": "answered"}) == 4
    assert stats["execution_count"] == sample("freqmerge_batch_size_count") == 3
    parts = stats["inference_stats"]
    stages = {"queue": "queue", "compute_input": "copy", "compute_infer": "engine", "compute_output": "encode"}
    for part, stage in stages.items():
        assert parts[part]["count"] == sample("freqmerge_stage_duration_seconds_count", {"stage": stage}) == 3
        seconds = sample("freqmerge_stage_duration_seconds_sum", {"stage": stage})
        assert parts[part]["ns"] == pytest.approx(1e9 * (seconds or 0), abs=1)
        assert parts[part]["ns"] > 0
    assert parts["success"] == {"count": 3, "ns": sum(parts[part]["ns"] for part in stages)}
    assert parts["fail"] == {"count": 1, "ns": 0}
    assert parts["cache_hit"] == parts["cache_miss"] == {"count": 0, "ns": 0}


@pytest.mark.parametrize("path", STATS)
async def test_statistics_begin_at_zero(client: httpx.AsyncClient, path: str) -> None:
    [stats] = (await client.get(path)).json()["model_stats"]
    assert (stats["inference_count"], stats["execution_count"], stats["last_inference"]) == (0, 0, 0)
    assert {part["count"] for part in stats["inference_stats"].values()} == {0}


def test_statistics_of_several_replicas_are_added_up() -> None:
    told = CounterMetricFamily("freqmerge_images", "", labels=["outcome", "replica"])
    for outcome, replica, images in [("answered", "a", 3), ("answered", "b", 4), ("expired", "b", 2)]:
        told.add_metric([outcome, replica], images)
    [stats] = statistics([told], "double", 0).model_stats
    assert (stats.inference_count, stats.inference_stats.fail.count) == (7, 2)


INDEX = "/v2/repository/index"


@pytest.mark.parametrize("body", ["", "{}", '{"ready": true}', '{"ready": null, "more": 1}'])
async def test_the_index_names_the_model(client: httpx.AsyncClient, body: str) -> None:
    found = (await client.post(INDEX, content=body)).json()
    assert found == [{"name": "double", "version": "1", "state": "READY", "reason": ""}]


async def test_the_index_says_why_the_model_does_not_answer(start: Start) -> None:
    app = await start()
    app.service.announce_shutdown()
    [entry] = (await app.client.post(INDEX)).json()
    assert entry["state"] == "UNAVAILABLE"
    assert "shutting down" in entry["reason"]
    assert (await app.client.post(INDEX, json={"ready": True})).json() == []


@pytest.mark.parametrize("path", ["/v2/models/other/config", "/v2/models/double/versions/2/stats"])
async def test_another_model_has_no_configuration_and_no_statistics(client: httpx.AsyncClient, path: str) -> None:
    assert "expected model 'double', version '1'" in refusal(await client.get(path), 404)


@pytest.mark.parametrize("body", ["[]", '{"ready": 7}', "no json"])
async def test_a_request_for_the_index_that_makes_no_sense_is_refused(client: httpx.AsyncClient, body: str) -> None:
    assert "expected" in refusal(await client.post(INDEX, content=body), 400)
    assert "at most 4,096 bytes" in refusal(await client.post(INDEX, content=" " * 5000), 413)


# --- refusals ---

GOOD = image(picture(7))


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({}, "inputs: expected a value"),
        ([], "body: expected an object"),
        ({"inputs": []}, "inputs: expected 1 elements or more"),
        ({"inputs": [GOOD, tensor(3)]}, "expected exactly one, image or pixels, found 2: 'image', 'pixels'"),
        ({"inputs": [GOOD | {"name": "picture"}]}, "found 'picture' of datatype 'BYTES'"),
        ({"inputs": [GOOD | {"datatype": "FP32"}]}, "found 'image' of datatype 'FP32'"),
        ({"inputs": [GOOD | {"shape": [2]}]}, "image: expected 2 elements as its shape says, found 1"),
        ({"inputs": [GOOD | {"shape": []}]}, "expected shape [count] with a count of 1..64, found []"),
        ({"inputs": [GOOD | {"shape": [0], "data": []}]}, "count of 1..64, found [0]"),
        ({"inputs": [GOOD | {"shape": [65], "data": GOOD["data"] * 65}]}, "count of 1..64, found [65]"),
        ({"inputs": [GOOD | {"shape": [-1]}]}, "inputs.0.shape.0: expected 0 or more"),
        ({"inputs": [GOOD | {"shape": [1 << 64]}]}, "inputs.0.shape.0: expected"),
        ({"inputs": [GOOD | {"data": ["no base64!"]}]}, "image[0]: expected an encoded picture as a text in base64"),
        ({"inputs": [GOOD | {"data": [7]}]}, "image[0]: expected an encoded picture as a text in base64"),
        ({"inputs": [GOOD | {"data": ["data:image/png;base64,iVBO"]}]}, "base64, found ':' in 'data:image/png;"),
        (
            {"inputs": [GOOD | {"data": ["iVBO=Rw0"]}]},
            "image[0]: expected an encoded picture as a text in base64, found '='",
        ),
        (
            {"inputs": [GOOD | {"data": ["iV+O-w"]}]},
            "a mixture of two alphabets, + or / of base64 beside - or _ of base64url",
        ),
        ({"inputs": [GOOD | {"data": ["iVBOR"]}]}, "found 5 characters and 0 of padding, which no file encodes to"),
        ({"inputs": [GOOD | {"data": ["iVBORw==="]}]}, "found 6 characters and 3 of padding, which no file encodes to"),
        ({"inputs": [GOOD | {"data": GOOD["data"][0]}]}, "expected a list in data or the parameter"),
        ({"inputs": [{name: GOOD[name] for name in ("name", "datatype", "shape")}]}, "found both or none"),
        ({"inputs": [GOOD | {"parameters": {"binary_data_size": 5}}]}, "binary_data_size of 0"),
        ({"inputs": [GOOD | {"parameters": {"shared_memory_region": "r"}}]}, "found a region of shared memory"),
        ({"inputs": [tensor(3) | {"shape": [1, NATIVE, NATIVE, 3]}]}, "pixels: expected shape [count, 3, 8, 8]"),
        ({"inputs": [tensor(3) | {"data": [0] * 5}]}, "pixels: expected 192 whole numbers 0..255"),
        ({"inputs": [tensor(3) | {"data": [0.5] * 192}]}, "pixels: expected 192 whole numbers 0..255"),
        ({"inputs": [tensor(3) | {"data": [256] * 192}]}, "pixels: expected numbers 0..255, found 256..256"),
        ({"inputs": [tensor(3) | {"data": [-1] * 192}]}, "pixels: expected numbers 0..255, found -1..-1"),
        ({"inputs": [tensor(3) | {"data": [[1], [2, 3]]}]}, "pixels: expected 192 whole numbers"),
        ({"inputs": [GOOD], "outputs": [{"name": "scores"}]}, "outputs: expected each of probabilities, logits"),
        ({"inputs": [GOOD], "outputs": [{"name": "label"}] * 2}, "once at most, found 'label'"),
        (
            {"inputs": [GOOD], "outputs": [{"name": "label", "parameters": {"classification": 1}}]},
            "classification: expected probabilities or logits, found label",
        ),
        (
            {"inputs": [GOOD], "outputs": [{"name": "logits", "parameters": {"classification": 101}}]},
            "logits: expected a classification of at most 100, found 101",
        ),
    ],
)
async def test_a_request_that_does_not_say_what_it_wants_is_told_why(
    client: httpx.AsyncClient, request_: Any, words: str
) -> None:
    assert words in refusal(await client.post(INFER, json=request_), 400)


@pytest.mark.parametrize(
    ("raw", "shape", "words"),
    [
        (elements(b"abc")[:-1], [1], "element 0 to have 3 bytes after its 4-byte length, found 2"),
        (b"\x01", [1], "element 0 to have 1 bytes after its 4-byte length, found 0"),
        (b"\xff\xff\xff\xff", [1], "element 0 to have 4,294,967,295 bytes"),
        (elements(b"abc"), [2], "expected 2 elements as its shape says, found the end after 1"),
        (elements(b"abc", b"de"), [1], "expected 1 elements as its shape says, found 6 more bytes after 1"),
    ],
)
async def test_binary_elements_that_do_not_add_up_are_refused(
    client: httpx.AsyncClient, raw: bytes, shape: list[int], words: str
) -> None:
    given = {"name": "image", "datatype": "BYTES", "shape": shape, "parameters": {"binary_data_size": len(raw)}}
    assert words in refusal(await ask_binary(client, {"inputs": [given]}, raw), 400)


@pytest.mark.parametrize("length", ["-1", "x", "1.5", "999999", "", "1" * 20])
async def test_a_header_length_that_cannot_be_is_refused(client: httpx.AsyncClient, length: str) -> None:
    answer = await client.post(INFER, content=b"{}", headers={"Inference-Header-Content-Length": length})
    assert "Inference-Header-Content-Length: expected" in refusal(answer, 400)


@pytest.mark.parametrize("body", [b"", b"no json", b"\xff\xfe", b"[" * 5000, b'{"id": "\\ud800", "inputs": []}'])
async def test_text_that_is_no_json_is_refused(client: httpx.AsyncClient, body: bytes) -> None:
    refusal(await client.post(INFER, content=body), 400)


async def test_pictures_are_refused_as_everywhere_with_their_number_in_the_batch(client: httpx.AsyncClient) -> None:
    assert "found text" in refusal(await ask(client, image(b"text")), 415)
    several = refusal(await ask(client, image(picture(7), b"\x89PNG\r\n\x1a\n", b"text")), 422)
    assert several.startswith("picture 1 of 3: expected")
    assert "the model" in refusal(await ask(client, tensor(3, POISON)), 500)


async def test_a_compressed_body_is_refused(client: httpx.AsyncClient) -> None:
    answer = await client.post(INFER, content=b"x", headers={"Content-Encoding": "gzip"})
    assert "Content-Encoding, found 'gzip'" in refusal(answer, 415)


async def test_too_many_bytes_are_refused(start: Start) -> None:
    app = await start(max_batch_upload_bytes=5000, max_upload_bytes=1024)
    assert "at most 5,000 bytes" in refusal(await app.client.post(INFER, content=bytes(5001)), 413)


async def test_a_json_part_larger_than_the_largest_picture_is_refused_before_it_is_parsed(start: Start) -> None:
    app = await start(max_upload_bytes=1024)
    answer = await ask(app.client, image(bytes(60_000)))
    assert "bytes of JSON" in refusal(answer, 400)
    lists = b'{"inputs": [' + b"[]," * 20_000 + b"[]]}"
    assert len(lists) < 64 * 1024
    assert "expected" in refusal(await app.client.post(INFER, content=lists), 400)


async def test_lists_that_would_fill_the_memory_are_refused_before_they_are_parsed(client: httpx.AsyncClient) -> None:
    lists = b'{"inputs": [' + b"[]," * 100_000 + b"[]]}"
    assert "at most 100,000 lists and objects" in refusal(await client.post(INFER, content=lists), 400)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", INFER, 405),
        ("POST", "/v2", 405),
        ("GET", "/v2/models", 404),
        ("GET", "/v2/repository/index", 405),
        ("POST", "/v2/repository/models/double/load", 404),
    ],
)
async def test_unknown_routes_and_methods_are_refused_in_the_protocols_form(
    client: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    answer = await client.request(method, path)
    assert "expected" in refusal(answer, status)
    if status == 405:
        assert answer.headers["allow"] == ("GET, HEAD" if path == "/v2" else "POST")


async def test_a_missing_key_is_refused_in_the_protocols_form_and_health_needs_none(start: Start) -> None:
    client = (await start(api_keys=SecretStr("key-0123456789"))).client
    assert "expected an API key" in refusal(await client.get("/v2"), 401)
    assert (await client.get("/v2/health/ready")).status_code == 200


# --- any request at all ---

CONTRACT = Contract(metadata.inputs(served(FakeEngine())), metadata.outputs(served(FakeEngine())), 4, 1 << 20)
SMALL_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
PARAMETERS = st.dictionaries(
    st.sampled_from(["binary_data_size", "binary_data", "classification", "binary_data_output"]), SMALL_JSON, max_size=2
)
INPUT = st.fixed_dictionaries(
    {"name": st.sampled_from(["image", "pixels"]), "datatype": st.sampled_from(["BYTES", "UINT8"])},
    optional={
        "shape": st.sampled_from([[1], [2], [1, 3, 8, 8], [1, 1]]) | SMALL_JSON,
        "data": st.lists(SMALL_JSON, max_size=3) | st.just([0] * 192) | SMALL_JSON,
        "parameters": PARAMETERS | SMALL_JSON,
    },
)
REQUEST = st.fixed_dictionaries(
    {"inputs": st.lists(INPUT, max_size=2) | SMALL_JSON},
    optional={"outputs": st.lists(SMALL_JSON, max_size=2) | SMALL_JSON, "parameters": PARAMETERS, "id": SMALL_JSON},
)


@given(REQUEST | SMALL_JSON, st.binary(max_size=20), st.sampled_from([None, "whole", "0", "3"]))
def test_whatever_is_sent_becomes_a_valid_request_or_a_refusal(body: Any, raw: bytes, length: str | None) -> None:
    try:
        text = orjson.dumps(body)
    except (TypeError, orjson.JSONEncodeError):  # integers beyond 64 bits, half characters
        text = json.dumps(body).encode()
    try:
        found = parse(text + raw, str(len(text)) if length == "whole" else length, CONTRACT)
    except BadInference:
        return
    count = len(found.files) if found.pixels is None else len(found.pixels)
    assert 1 <= count <= 4
    assert found.wanted
