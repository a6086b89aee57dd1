"""What comes before a route on a real socket: headers without end, headers that stall, and connections that idle."""

from __future__ import annotations

import contextlib
import http.client
import select
import socket
import time
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI

from service.app import create_app
from service.settings import Settings
from tests.service.conftest import DEADLINE_S
from tests.support.doubles import FakeEngine, loader, picture
from tests.support.live import serving
from tests.support.sockets import answers, connect, only, rejected
from tests.support.wire import problem

LIMIT = 8192
STEP = 512
LIVE = b"GET /live HTTP/1.1\r\nHost: x\r\n"
LAST = LIVE + b"Connection: close\r\n\r\n"


@pytest.fixture(scope="module")
def app() -> FastAPI:
    return create_app(Settings(max_header_bytes=LIMIT, header_timeout_s=3600), loader(FakeEngine()))


@pytest.fixture(scope="module")
def url(app: FastAPI) -> Iterator[str]:
    with serving(app) as found:
        yield found


@pytest.fixture(scope="module")
def hasty() -> Iterator[str]:
    """A server that waits for nobody."""
    settings = Settings(header_timeout_s=0.2, body_timeout_s=0.2, keep_alive_s=1)
    with serving(create_app(settings, loader(FakeEngine()))) as found:
        yield found


def is_alive(url: str) -> bool:
    return httpx.get(f"{url}/live").status_code == 200


def padded(size: int, before: bytes = LIVE) -> bytes:
    """A whole request of so many bytes."""
    return before + b"X: " + b"a" * (size - len(before) - 7) + b"\r\n\r\n"


# --- bytes ---


@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"], ids=["unfinished", "finished"])
def test_a_header_above_the_limit_is_refused_and_counted_and_the_connection_closed(
    app: FastAPI, url: str, end: bytes
) -> None:
    before = rejected(app, "header_too_large")
    with connect(url) as raw:
        raw.sendall(LIVE + b"X: " + b"a" * 100_000 + end)
        answer = only(answers(raw))
    assert problem(answer, 431, "header_too_large")["instance"] == "*"
    assert "at most 8,192 bytes" in answer.json()["detail"]
    assert answer.headers["connection"] == "close"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert rejected(app, "header_too_large") == before + 1


@pytest.mark.parametrize(("size", "status"), [(LIMIT, 200), (LIMIT + 1, 431)])
def test_the_limit_itself_is_taken_and_one_byte_more_is_not(url: str, size: int, status: int) -> None:
    with connect(url) as raw:
        data = padded(size, LIVE + b"Connection: close\r\n")
        assert len(data) == size
        raw.sendall(data)
        assert only(answers(raw)).status_code == status


def test_a_header_without_end_is_refused_after_the_limit_while_others_are_answered(url: str) -> None:
    with connect(url) as raw:
        raw.sendall(LIVE + b"X: ")
        sent = 0
        while not select.select([raw], [], [], 0)[0]:
            raw.sendall(b"a" * STEP)
            sent += STEP
            assert is_alive(url)
            assert sent < 2 * LIMIT
        problem(only(answers(raw)), 431, "header_too_large")


@pytest.mark.parametrize("byte", [b"a", b"\n"])
def test_a_client_that_sends_on_without_reading_is_cut_off(url: str, byte: bytes) -> None:
    sent, piece = 0, byte * 65536
    with connect(url) as raw, contextlib.suppress(ConnectionError):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        while sent < 41 << 20:
            raw.sendall(piece)
            sent += len(piece)
    assert sent < 16 << 20  # a megabyte is let pass, the rest is in the buffers of the two sockets
    assert is_alive(url)


@pytest.mark.parametrize("rest", [b"0\r\nX: ", b"1;x="], ids=["trailers", "extension of a chunk"])
def test_what_stands_between_the_parts_of_a_body_is_bounded_too(url: str, rest: bytes) -> None:
    with connect(url) as raw:
        raw.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n" + rest)
        for _ in range(2 * LIMIT // STEP):
            raw.sendall(b"a" * STEP)
        problem(only(answers(raw)), 431, "header_too_large")


def test_trailers_without_end_behind_an_answered_request_close_the_connection_without_a_second_answer(
    url: str,
) -> None:
    with connect(url) as raw:
        raw.sendall(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert select.select([raw], [], [], DEADLINE_S)[0]
        raw.sendall(b"0\r\nX: " + b"a" * 3 * LIMIT)
        problem(only(answers(raw)), 404, "route_not_found")


# --- time ---


@pytest.mark.parametrize("begun", [b"G", LIVE, b"\r\n"], ids=["one byte", "unfinished header", "empty line"])
def test_a_header_that_stalls_is_given_up(hasty: str, begun: bytes) -> None:
    with connect(hasty) as raw:
        raw.sendall(begun)
        assert "within 0.2 s" in problem(only(answers(raw)), 408, "slow_header")["detail"]


def test_a_header_that_trickles_gets_no_more_time_for_it(hasty: str) -> None:
    with connect(hasty) as raw:
        raw.sendall(LIVE)
        deadline = time.monotonic() + DEADLINE_S
        while not select.select([raw], [], [], 0.02)[0]:
            raw.sendall(b"X: y\r\n")
            assert time.monotonic() < deadline
        problem(only(answers(raw)), 408, "slow_header")


def test_the_next_header_of_a_kept_connection_is_given_up_too(hasty: str) -> None:
    with connect(hasty) as raw:
        raw.sendall(LIVE + b"\r\n")
        assert select.select([raw], [], [], DEADLINE_S)[0]
        raw.sendall(LIVE)
        first, second = answers(raw)
    assert first.status_code == 200
    problem(second, 408, "slow_header")


def test_a_header_that_begins_behind_a_whole_request_is_given_up_too(hasty: str) -> None:
    with connect(hasty) as raw:
        raw.sendall(LIVE + b"\r\n" + LIVE)
        first, second = answers(raw)
    assert first.status_code == 200
    problem(second, 408, "slow_header")


def test_a_connection_that_says_nothing_is_closed(hasty: str) -> None:
    with connect(hasty) as raw:
        assert raw.recv(1) == b""


def test_the_end_of_a_body_in_a_piece_of_its_own_does_not_count_as_a_header(hasty: str) -> None:
    with connect(hasty) as raw:
        raw.sendall(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert select.select([raw], [], [], DEADLINE_S)[0]
        raw.sendall(b"0\r\n\r\n")
        problem(only(answers(raw)), 404, "route_not_found")


@pytest.mark.parametrize("rest", [b"a", b"a" * 100], ids=["unfinished", "finished"])
def test_a_connection_is_closed_after_the_body_of_a_request_that_was_answered_before_it(
    hasty: str, rest: bytes
) -> None:
    with connect(hasty) as raw:
        raw.sendall(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
        assert select.select([raw], [], [], DEADLINE_S)[0]
        raw.sendall(rest)
        problem(only(answers(raw)), 404, "route_not_found")


# --- what is as it was ---


def test_many_requests_on_one_connection_are_answered(url: str) -> None:
    address = httpx.URL(url)
    client = http.client.HTTPConnection(address.host, address.port, timeout=DEADLINE_S)
    client.connect()
    first = client.sock
    for index in range(100):
        client.request("GET", "/live", headers={"X": "a" * 1000, "X-Request-ID": f"r{index}"})
        answer = client.getresponse()
        assert (answer.status, answer.getheader("x-request-id"), answer.read() != b"") == (200, f"r{index}", True)
        assert client.sock is first
    client.close()


def test_pipelined_requests_are_answered_in_order_however_they_are_cut(url: str) -> None:
    requests = [padded(1000, LIVE + b"X-Request-ID: r%d\r\n" % index) for index in range(50)]
    data = b"".join(requests) + LAST
    for step in (len(data), 7001, 999):
        with connect(url) as raw:
            for start in range(0, len(data), step):
                raw.sendall(data[start : start + step])
            found = answers(raw)
        assert [answer.status_code for answer in found] == [200] * 51
        assert [answer.headers["x-request-id"] for answer in found[:50]] == [f"r{index}" for index in range(50)]


def test_a_body_larger_than_the_limit_arrives_whole_and_the_next_request_behind_it(url: str) -> None:
    data = picture(5) + bytes(20 * LIMIT)  # a decoder ignores what follows the picture
    head = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data)
    with connect(url) as raw:
        raw.sendall(head + data + LAST)
        first, second = answers(raw)
    assert (first.status_code, second.status_code) == (200, 200)


# --- bytes that are no request, and answers that are owed ---


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"GET  HTTP\r\n\r\n", b"GET / HTTP/1.1\r\n: x\r\n\r\n"]
)
def test_bytes_that_are_no_request_get_a_problem_document(app: FastAPI, url: str, data: bytes) -> None:
    before = rejected(app, "bad_http")
    with connect(url) as raw:
        raw.sendall(data)
        problem(only(answers(raw)), 400, "bad_http")
    assert rejected(app, "bad_http") == before + 1


@pytest.mark.parametrize(
    ("behind", "reason"), [(b"X: " + b"a" * 3 * LIMIT, "header_too_large"), (b"\x00\r\n", "bad_http")]
)
def test_a_refusal_behind_an_unanswered_request_lets_that_be_answered_and_says_nothing_itself(
    behind: bytes, reason: str
) -> None:
    engine, data = FakeEngine(), picture(9)
    app = create_app(Settings(max_header_bytes=LIMIT), loader(engine))
    head = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data)
    with serving(app) as url, contextlib.ExitStack() as stack:
        engine.hold()
        stack.callback(engine.release)
        raw = stack.enter_context(connect(url))
        raw.sendall(head + data + LIVE + behind)
        deadline = time.monotonic() + DEADLINE_S
        while not rejected(app, reason):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        engine.release()
        assert only(answers(raw)).status_code == 200
