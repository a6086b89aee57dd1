"""What tests say over HTTP: problem documents, and requests that no well-behaved client would send."""

from __future__ import annotations

import asyncio
import json
import struct
import zlib
from typing import Any

import httpx
from fastapi import FastAPI

from service.errors import problem_type

PROBLEM_MEMBERS = {"type", "title", "status", "detail", "instance", "request_id"}

STATES = {"not_ready", "draining"}
"""Reasons that may tell a state of the service in a sentence; all others name what was expected and found."""


def problem(response: httpx.Response, status: int, reason: str) -> dict[str, Any]:
    """The problem document of a refused request, once everything that all of them share is checked."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert set(body) >= PROBLEM_MEMBERS
    assert body["type"] == problem_type(reason)
    assert body["status"] == status
    assert body["request_id"] == response.headers["x-request-id"]
    detail = body["detail"]
    assert "expected" in detail or (reason in STATES and detail[0].isupper() and detail.endswith("."))
    for leak in ("Traceback", 'File "', ".py"):
        assert leak not in response.text
    return body


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and holds no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    chunks = [
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in (header, data)
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


class RawRequest:
    """A POST whose body and end the test plays by hand, message by message."""

    def __init__(self, app: FastAPI, path: str, headers: dict[str, str] | None = None) -> None:
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent: list[dict[str, Any]] = []
        path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
            "client": ("test", 1),
            "server": ("test", 80),
        }

        async def send(message: Any) -> None:
            self.sent.append(message)

        self.task = asyncio.create_task(app(scope, self.messages.get, send))  # type: ignore[arg-type]

    def body(self, data: bytes, more: bool = False) -> None:
        """The client sends a piece of its body."""
        self.messages.put_nowait({"type": "http.request", "body": data, "more_body": more})

    def leave(self) -> None:
        """The client closes the connection."""
        self.messages.put_nowait({"type": "http.disconnect"})

    async def answer(self) -> httpx.Response:
        """What the app sent, once it has finished."""
        async with asyncio.timeout(20):
            await self.task
        start, *rest = self.sent
        content = b"".join(message.get("body", b"") for message in rest)
        return httpx.Response(start["status"], headers=start["headers"], content=content)


def json_of(text: str) -> Any:
    """Parsed JSON that refuses NaN and infinities."""
    return json.loads(text, parse_constant=lambda name: (_ for _ in ()).throw(ValueError(name)))
