"""HTTP/1.1 as a load client needs it: requests made once, answers read for their status and body; no I/O.

Far smaller than a general client, which would cost more per request than the server that it measures.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

HEAD_END = b"\r\n\r\n"
BOUNDARY = "freqmerge-bench-boundary"


class Answer(NamedTuple):
    """One answer of a server."""

    status: int
    body: bytes
    close: bool
    """Whether the server ends the connection after it."""


class WireError(Exception):
    """What the server sent is not an HTTP/1.1 answer that this client understands."""


def request(method: str, path: str, host: str, body: bytes = b"", headers: dict[str, str] | None = None) -> bytes:
    """The bytes of a request on a connection that stays open."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if body or method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + HEAD_END + body


def multipart(files: Sequence[bytes], field: str = "file") -> tuple[bytes, str]:
    """A form with one part per file, and its media type."""
    boundary = BOUNDARY
    while any(boundary.encode() in file for file in files):
        boundary = BOUNDARY + os.urandom(8).hex()
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{number}"\r\n'
        f"Content-Type: application/octet-stream\r\n\r\n".encode()
        + file
        + b"\r\n"
        for number, file in enumerate(files)
    ]
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


class AnswerReader:
    """Takes bytes as they arrive and gives the answers that are complete; knows lengths and chunks."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._head: tuple[int, int | None, bool] | None = None
        self._chunks = bytearray()

    def feed(self, data: bytes) -> Iterator[Answer]:
        """The answers that these bytes complete; raises `WireError`."""
        self._buffer += data
        while (answer := self._next()) is not None:
            yield answer

    def _next(self) -> Answer | None:
        self._head = self._head or self._read_head()
        if self._head is None:
            return None
        status, length, close = self._head
        body = self._read_chunks() if length is None else self._take(length)
        if body is None:
            return None
        self._head = None
        return Answer(status, body, close)

    def _read_head(self) -> tuple[int, int | None, bool] | None:
        while (end := self._buffer.find(HEAD_END)) >= 0:
            head = _parse(bytes(self._buffer[:end]).lower())
            del self._buffer[: end + len(HEAD_END)]
            if head[0] >= 200:  # 100 Continue and the like are no answer
                return head
        return None

    def _take(self, count: int) -> bytes | None:
        if len(self._buffer) < count:
            return None
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def _read_chunks(self) -> bytes | None:
        while (end := self._buffer.find(b"\r\n")) >= 0:
            size = int(self._buffer[:end].partition(b";")[0], 16)
            if len(self._buffer) < end + 2 + size + 2:
                return None
            self._chunks += self._buffer[end + 2 : end + 2 + size]
            del self._buffer[: end + 2 + size + 2]
            if size == 0:
                body = bytes(self._chunks)
                self._chunks.clear()
                return body
        return None


def _parse(head: bytes) -> tuple[int, int | None, bool]:
    """Status, length of the body (None: chunks) and whether the connection closes."""
    lines = head.split(b"\r\n")
    try:
        version, status = lines[0].split(b" ", 2)[:2]
        fields = {name.strip(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])}
        code = int(status)
        chunked = fields.get(b"transfer-encoding") == b"chunked"
        length = None if chunked else 0 if code in (204, 304) or code < 200 else int(fields[b"content-length"])
    except (ValueError, KeyError) as error:
        raise WireError(f"expected an HTTP/1.1 answer with a length, found {head[:200]!r}") from error
    if not version.startswith(b"http/1."):
        raise WireError(f"expected HTTP/1.1, found {version!r}")
    return code, length, fields.get(b"connection") == b"close" or version == b"http/1.0"
