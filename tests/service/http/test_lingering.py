"""A refusal reaches a client that is still sending the body and asked for the connection to be closed."""

from __future__ import annotations

import contextlib
import select
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import httpx
import pytest

from service.app import create_app
from service.settings import MIB, Settings
from tests.service.conftest import DEADLINE_S
from tests.support.doubles import FakeEngine, loader
from tests.support.live import serving
from tests.support.sockets import answers, connect, only
from tests.support.wire import problem

HEAD = b"POST /classify HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
LIVE = b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n"
SIZE = 30 * MIB


@pytest.fixture(scope="module")
def strict() -> Iterator[str]:
    """A server that waits for nobody and takes little."""
    settings = Settings(max_upload_bytes=MIB, max_batch_upload_bytes=MIB, body_timeout_s=0.2)
    with serving(create_app(settings, loader(FakeEngine()))) as found:
        yield found


def test_urllib_reads_why_its_body_is_refused(url: str) -> None:
    request = urllib.request.Request(f"{url}/classify", bytes(SIZE), {"Content-Type": "image/jpeg"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=DEADLINE_S)
    with caught.value as answer:
        assert answer.status == 413
        assert b"31,457,280 announced in Content-Length" in answer.read()


@pytest.mark.parametrize(
    ("framing", "body"),
    [
        (b"Content-Length: %d\r\n\r\n" % SIZE, bytes(SIZE)),
        (b"Transfer-Encoding: chunked\r\n\r\n", b"%x\r\n%b\r\n0\r\n\r\n" % (SIZE, bytes(SIZE))),
    ],
    ids=["announced", "in chunks"],
)
@pytest.mark.parametrize("behind", [b"", LIVE], ids=["alone", "with a request behind it"])
def test_a_client_that_sends_everything_before_it_reads_gets_the_only_answer(
    url: str, framing: bytes, body: bytes, behind: bytes
) -> None:
    with connect(url) as raw:
        raw.sendall(HEAD + framing + body + behind)
        answer = only(answers(raw))
    problem(answer, 413, "too_large")
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize(
    ("target", "status", "reason"),
    [(b"/nowhere", 404, "route_not_found"), (b"/classify/batch", 415, "unsupported_format")],
)
def test_a_refusal_for_another_reason_is_read_too(url: str, target: bytes, status: int, reason: str) -> None:
    with connect(url) as raw:
        raw.sendall(HEAD.replace(b"/classify", target) + b"Content-Length: %d\r\n\r\n" % SIZE + bytes(SIZE))
        problem(only(answers(raw)), status, reason)


def test_a_client_that_reads_before_it_sends_sees_the_end_of_the_answer_at_once(url: str) -> None:
    with connect(url) as raw:
        raw.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % SIZE)
        problem(only(answers(raw)), 413, "too_large")


@pytest.mark.parametrize("connection", [b"close", b"keep-alive"])
def test_a_body_without_end_is_cut_off_after_the_largest_that_the_service_takes(strict: str, connection: bytes) -> None:
    sent, piece = 0, b"10000\r\n" + bytes(65536) + b"\r\n"
    with connect(strict) as raw, contextlib.suppress(ConnectionError):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        raw.sendall(HEAD.replace(b"close", connection) + b"Transfer-Encoding: chunked\r\n\r\n")
        while sent < 41 * MIB:
            raw.sendall(piece)
            sent += 65536
    assert MIB < sent < 16 * MIB  # what is above the limit is in the buffers of the two sockets
    assert httpx.get(f"{strict}/live").status_code == 200


def test_a_client_that_trickles_on_behind_its_answer_is_cut_off_after_the_time_of_a_slow_body(strict: str) -> None:
    with connect(strict) as raw:
        raw.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % SIZE)
        problem(only(answers(raw)), 413, "too_large")
        cut = select.poll()
        cut.register(raw, 0)  # errors only
        deadline = time.monotonic() + DEADLINE_S
        while not cut.poll(10):
            raw.sendall(b"a")
            assert time.monotonic() < deadline
