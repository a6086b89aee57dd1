"""NVIDIA's own client of the Open Inference Protocol against a server process with the tiny model."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from tests.service.http.test_server import checkpoint, spawn  # noqa: F401 - fixtures
from tests.support.doubles import picture
from tests.support.process import PATIENCE_S, Process


def key() -> dict[str, str]:
    """The header that opens the server; a new one each time, for the client writes into what it is given."""
    return {"Authorization": "Bearer key-0123456789"}


FILES = [picture(90, (64, 48), "JPEG"), picture(200, (40, 40), "PNG")]
PIXELS = np.stack([np.full((3, 32, 32), value, np.uint8) for value in (90, 200)])


@pytest.fixture(scope="module")
def url(spawn: Callable[..., Process], checkpoint: object) -> str:  # noqa: F811
    """Address of a ready server that asks for a key."""
    process = spawn("--port", "0", checkpoint=checkpoint, api_keys="key-0123456789", shutdown_timeout_s=10)
    process.told("ready")
    return str(process.told("listening")["url"])


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Any]:
    found = triton.InferenceServerClient(url.removeprefix("http://"), network_timeout=PATIENCE_S)
    yield found
    found.close()


def encoded(*files: bytes, binary: bool = True) -> Any:
    given = triton.InferInput("image", [len(files)], "BYTES")
    elements = list(files) if binary else [base64.b64encode(file) for file in files]
    return given.set_data_from_numpy(np.array(elements, np.object_), binary_data=binary)


def decoded(levels: NDArray[np.uint8], binary: bool = True) -> Any:
    return triton.InferInput("pixels", list(levels.shape), "UINT8").set_data_from_numpy(levels, binary_data=binary)


def asked(name: str, binary: bool = True, classes: int = 0) -> Any:
    return triton.InferRequestedOutput(name, binary_data=binary, class_count=classes)


def test_the_client_finds_server_and_model_live_and_ready(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny", headers=key())
    assert client.is_model_ready("tiny", "1", headers=key())
    assert not client.is_model_ready("huge", headers=key())


def test_the_client_reads_the_metadata(client: Any) -> None:
    extensions = ["binary_tensor_data", "classification", "model_configuration", "statistics"]
    assert client.get_server_metadata(headers=key())["extensions"] == extensions
    found = client.get_model_metadata("tiny", "1", headers=key())
    assert [given["shape"] for given in found["inputs"]] == [[-1], [-1, 3, 32, 32]]
    assert {given["name"]: given["shape"] for given in found["outputs"]}["frequency_score"] == [-1, 64]


def test_the_client_reads_the_configuration_and_the_index(client: Any) -> None:
    for config in (client.get_model_config("tiny", headers=key()), client.get_model_config("tiny", "1", headers=key())):
        assert (config["name"], config["max_batch_size"]) == ("tiny", 64)
        assert {given["name"]: given["dims"] for given in config["input"]} == {"image": [], "pixels": [3, 32, 32]}
    assert client.get_model_repository_index(headers=key()) == [
        {"name": "tiny", "version": "1", "state": "READY", "reason": ""}
    ]


def test_the_client_reads_statistics_that_follow_its_requests(client: Any) -> None:
    def read(*model: str) -> dict[str, Any]:
        [stats] = client.get_inference_statistics(*model, headers=key())["model_stats"]
        return dict(stats)

    before = read()
    client.infer("tiny", [decoded(PIXELS)], headers=key())
    after = read("tiny")
    assert after["inference_count"] - before["inference_count"] == 2
    assert after["execution_count"] - before["execution_count"] in (1, 2)
    assert after["last_inference"] > before["last_inference"]
    for part in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        was, now = before["inference_stats"][part], after["inference_stats"][part]
        assert now["count"] - was["count"] == 1
        assert now["ns"] > was["ns"]
    assert read("tiny", "1")["inference_count"] == after["inference_count"]


def test_all_outputs_come_in_binary_unless_some_are_named(client: Any, url: str) -> None:
    found = client.infer("tiny", [encoded(*FILES)], headers=key(), request_id="42")
    assert found.get_response()["id"] == "42"
    shares = found.as_numpy("probabilities")
    assert (shares.dtype, shares.shape) == (np.float32, (2, 100))
    assert np.allclose(shares.sum(axis=1), 1, atol=1e-5)
    logits = found.as_numpy("logits")
    assert (logits.argmax(axis=1) == shares.argmax(axis=1)).all()
    sources = found.as_numpy("source_map")
    assert (sources.dtype, sources.shape) == (np.int64, (2, 64))
    assert set(sources[0].tolist()) == set(range(31))
    assert found.as_numpy("frequency_score").shape == found.as_numpy("energy").shape == (2, 64)
    assert not np.allclose(found.as_numpy("frequency_score"), found.as_numpy("energy"))
    for file, label, share in zip(FILES, found.as_numpy("label"), shares.max(axis=1), strict=True):
        [best] = httpx.post(f"{url}/classify?top_k=1", content=file, headers=key()).json()["predictions"]
        assert (label.decode(), pytest.approx(share, abs=2e-6)) == (best["label"], best["probability"])


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_pictures_and_pixels_give_the_same_in_json_and_in_binary(
    client: Any, binary_in: bool, binary_out: bool
) -> None:
    wanted = [asked("logits", binary_out), asked("label", binary_out)]
    grey = [picture(value, (32, 32)) for value in (90, 200)]
    by_file = client.infer("tiny", [encoded(*grey, binary=binary_in)], outputs=wanted, headers=key())
    by_pixels = client.infer("tiny", [decoded(PIXELS, binary_in)], outputs=wanted, headers=key())
    assert np.allclose(by_file.as_numpy("logits"), by_pixels.as_numpy("logits"), atol=1e-5)
    assert by_file.as_numpy("label").tolist() == by_pixels.as_numpy("label").tolist()
    assert by_file.as_numpy("frequency_score") is None


def test_the_client_gets_a_classification(client: Any) -> None:
    found = client.infer(
        "tiny", [decoded(PIXELS)], "1", [asked("probabilities", classes=3), asked("label")], headers=key()
    )
    classes = found.as_numpy("probabilities")
    assert classes.shape == (2, 3)
    value, index, label = classes[0, 0].decode().split(":")
    assert label == found.as_numpy("label")[0].decode()
    assert 0 < float(value) < 1
    assert 0 <= int(index) < 100


def test_requests_of_the_client_may_overlap(client: Any, url: str) -> None:
    several = triton.InferenceServerClient(url.removeprefix("http://"), concurrency=4, network_timeout=PATIENCE_S)
    running = [several.async_infer("tiny", [decoded(PIXELS[:1])], headers=key()) for _ in range(8)]
    logits = [request.get_result().as_numpy("logits") for request in running]
    several.close()
    assert all(np.allclose(row, logits[0], atol=1e-5) for row in logits)


@pytest.mark.parametrize(
    ("model", "given", "headers", "status", "words"),
    [
        ("huge", decoded(PIXELS), key(), "404", "expected model 'tiny'"),
        ("tiny", decoded(PIXELS), {}, "401", "expected an API key"),
        ("tiny", encoded(b"text"), key(), "415", "found text"),
        ("tiny", decoded(PIXELS[:, :, :16]), key(), "400", "expected shape [count, 3, 32, 32]"),
        ("tiny", triton.InferInput("image", [1], "BYTES"), key(), "400", "found both or none"),
    ],
)
def test_the_client_raises_what_the_service_says(
    client: Any, model: str, given: Any, headers: dict[str, str], status: str, words: str
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, [given], headers=headers)
    assert caught.value.status() == status
    assert words in caught.value.message()
