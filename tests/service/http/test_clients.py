"""Clients as people use them: requests, and curl where it asks before it sends."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Iterator

import pytest
import requests

from service.settings import MIB
from tests.service.conftest import DEADLINE_S
from tests.support.doubles import picture

DATA = picture(5)
TOO_LARGE = 30 * MIB


def pieces(total: int) -> Iterator[bytes]:
    """A body whose length nobody announces: requests sends it in chunks."""
    for start in range(0, total, 65536):
        yield bytes(min(65536, total - start))


def first_class(answer: requests.Response) -> int:
    assert answer.status_code == 200, answer.text
    found: int = answer.json()["predictions"][0]["class_id"]
    return found


def test_requests_uploads_a_file_in_a_form(url: str) -> None:
    form = {"file": ("picture.png", DATA, "image/png")}
    assert first_class(requests.post(f"{url}/classify", files=form, timeout=DEADLINE_S)) == 5


def test_requests_sends_a_picture_of_unknown_length_in_chunks(url: str) -> None:
    parts = iter([DATA[:20], DATA[20:]])
    assert first_class(requests.post(f"{url}/classify", data=parts, timeout=DEADLINE_S)) == 5


def test_requests_asks_the_inference_protocol_with_base64_in_json(url: str) -> None:
    text = base64.b64encode(DATA).decode()
    given = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [text]}
    answer = requests.post(f"{url}/v2/models/double/infer", json={"inputs": [given]}, timeout=DEADLINE_S)
    assert answer.status_code == 200, answer.text
    [probabilities] = [output["data"] for output in answer.json()["outputs"] if output["name"] == "probabilities"]
    assert max(range(100), key=probabilities.__getitem__) == 5


def test_requests_keeps_its_connection_after_a_refusal(url: str) -> None:
    with requests.Session() as session:
        refused = session.post(f"{url}/classify", data=b"no picture", timeout=DEADLINE_S)
        assert (refused.status_code, refused.headers.get("connection")) == (415, None)
        assert first_class(session.post(f"{url}/classify", data=DATA, timeout=DEADLINE_S)) == 5


@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "in chunks"])
def test_requests_reads_why_its_body_is_refused_on_a_connection_that_closes(url: str, chunked: bool) -> None:
    body = pieces(TOO_LARGE) if chunked else bytes(TOO_LARGE)
    headers = {"Content-Type": "image/jpeg", "Connection": "close"}
    answer = requests.post(f"{url}/classify", data=body, headers=headers, timeout=DEADLINE_S)
    assert answer.status_code == 413
    assert "expected at most 10,485,760 bytes" in answer.json()["detail"]
    assert answer.headers["connection"] == "close"


def curl(url: str, body: bytes) -> list[str]:
    """Status, bytes that were sent, and first digits of the statuses before the last, as curl tells them."""
    told = "%{stderr}%{http_code} %{size_upload}"
    options = ["-sv", "-o", "/dev/null", "-w", told, "-H", "Expect: 100-continue", "--expect100-timeout", "20"]
    command = ["curl", *options, "-H", "Content-Type: image/png", "--data-binary", "@-", f"{url}/classify"]
    done = subprocess.run(command, input=body, capture_output=True, timeout=DEADLINE_S, check=True)
    log = done.stderr.decode()
    status, size = log.splitlines()[-1].split()[-2:]
    return [status, size, *("100" for line in log.splitlines() if line.startswith("< HTTP/1.1 100"))]


def test_curl_that_asks_before_it_sends_gets_leave_and_its_answer(url: str) -> None:
    assert curl(url, DATA) == ["200", str(len(DATA)), "100"]


def test_curl_that_asks_before_it_sends_too_much_is_refused_before_a_byte_of_it(url: str) -> None:
    assert curl(url, bytes(TOO_LARGE)) == ["413", "0"]
