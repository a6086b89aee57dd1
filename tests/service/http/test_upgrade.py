"""Clients that offer another protocol: Java's and curl's HTTP/2 over plain text, and WebSocket."""

from __future__ import annotations

import logging

import httpx
import pytest
from fastapi import FastAPI

from tests.support.doubles import picture
from tests.support.sockets import answers, connect, only, wait_until
from tests.support.wire import problem

DATA = picture(5)
OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"
LAST_OFFER = OFFER.replace(b"Upgrade,", b"close, Upgrade,")
WEBSOCKET = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n"


def post(data: bytes = DATA, offer: bytes = LAST_OFFER, framing: bytes = b"") -> tuple[bytes, bytes]:
    """Header and body of a request that classifies."""
    framing = framing or b"Content-Length: %d\r\n" % len(data)
    return b"POST /classify HTTP/1.1\r\nHost: x\r\n" + offer + framing + b"\r\n", data


def first_class(answer: httpx.Response) -> int:
    assert answer.status_code == 200, answer.text
    found: int = answer.json()["predictions"][0]["class_id"]
    return found


def test_a_picture_sent_with_an_offer_of_http_2_is_classified(url: str) -> None:
    header, body = post()
    with connect(url) as raw:
        raw.sendall(header + body)
        assert first_class(only(answers(raw))) == 5


def test_a_picture_behind_the_header_of_an_offer_is_classified(app: FastAPI, url: str) -> None:
    header, body = post()
    with connect(url) as raw:
        raw.sendall(header)
        wait_until(lambda: app.state.service.metrics.in_flight == 1)
        raw.sendall(body)
        assert first_class(only(answers(raw))) == 5


@pytest.mark.parametrize("step", [1, 7, 100])
def test_an_offer_is_ignored_however_the_request_is_cut(url: str, step: int) -> None:
    data = b"".join(post())
    with connect(url) as raw:
        for start in range(0, len(data), step):
            raw.sendall(data[start : start + step])
        assert first_class(only(answers(raw))) == 5


def test_a_body_in_chunks_behind_an_offer_is_read(url: str) -> None:
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(DATA), DATA)
    with connect(url) as raw:
        raw.sendall(b"".join(post(chunked, framing=b"Transfer-Encoding: chunked\r\n")))
        assert first_class(only(answers(raw))) == 5


def test_a_large_body_behind_an_offer_arrives_whole(url: str) -> None:
    with connect(url) as raw:
        raw.sendall(b"".join(post(DATA + bytes(5 << 20))))  # a decoder ignores what follows the picture
        assert first_class(only(answers(raw))) == 5


def test_offers_do_not_end_a_connection_and_may_follow_each_other_at_once(url: str) -> None:
    kept = [b"".join(post(picture(value), OFFER)) for value in (1, 2, 3)]
    with connect(url) as raw:
        raw.sendall(b"".join(kept) + b"".join(post(picture(4))))
        assert [first_class(answer) for answer in answers(raw)] == [1, 2, 3, 4]


def test_a_client_that_offers_and_waits_for_leave_to_send_gets_it(url: str) -> None:
    header, body = post(offer=LAST_OFFER + b"Expect: 100-continue\r\n")
    with connect(url) as raw:
        raw.sendall(header)
        assert raw.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        raw.sendall(body)
        assert first_class(only(answers(raw))) == 5


@pytest.mark.parametrize("offer", [LAST_OFFER, WEBSOCKET.replace(b"Upgrade\r\n", b"close, Upgrade\r\n", 1)])
def test_an_offer_leaves_no_word_in_the_log(url: str, offer: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "uvicorn.error"), connect(url) as raw:
        raw.sendall(b"GET /live HTTP/1.1\r\nHost: x\r\n" + offer + b"\r\n")
        assert only(answers(raw)).json() == {"status": "alive"}
    assert [record.message for record in caplog.records if record.name == "uvicorn.error"] == []


def test_a_tunnel_is_refused_once(url: str) -> None:
    with connect(url) as raw:
        raw.sendall(b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n")
        problem(only(answers(raw)), 400, "bad_http")
