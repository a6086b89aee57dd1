"""What tests say to an app over a socket, byte by byte, and what they wait for inside it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import httpx
from fastapi import FastAPI

from tests.service.conftest import DEADLINE_S


def connect(url: str) -> socket.socket:
    address = httpx.URL(url)
    return socket.create_connection((address.host, address.port or 0), timeout=DEADLINE_S)


def answers(raw: socket.socket) -> list[httpx.Response]:
    """Everything that the server says until it closes the connection."""
    data = b""
    while piece := raw.recv(65536):
        data += piece
    found = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        status, *lines = head.split(b"\r\n")
        fields = [(name, value) for name, _, value in (line.partition(b": ") for line in lines)]
        size = int(dict(fields)[b"content-length"])
        found.append(httpx.Response(int(status.split()[1]), headers=fields, content=data[:size]))
        data = data[size:]
    return found


def only(found: list[httpx.Response]) -> httpx.Response:
    assert len(found) == 1, [answer.status_code for answer in found]
    return found[0]


def rejected(app: FastAPI, reason: str) -> float:
    return app.state.service.metrics.registry.get_sample_value("freqmerge_rejected_total", {"reason": reason}) or 0.0


def wait_until(condition: Callable[[], bool]) -> None:
    """Returns when what the server's thread changes has come true."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)
