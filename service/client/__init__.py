"""A client with nothing but the standard library:

from service.client import Client
answer = Client("http://localhost:8000").classify("photo.jpg")
print(answer.predictions[0].label)
"""

from __future__ import annotations

import contextlib
import http.client
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

DEFAULT_URL = "http://127.0.0.1:8000"

Photo = str | Path | bytes
"""A path, or the bytes of a picture file."""


class ClientError(Exception):
    """Base of what the client raises on purpose; the message is for people."""


class Refused(ClientError):
    """The service's own refusal; `reason` is the last part of the problem's type, such as `too_large`."""

    def __init__(self, status: int, title: str, detail: str, reason: str, request_id: str) -> None:
        super().__init__(f"{title} ({status}): {detail}")
        self.status = status
        self.reason = reason
        self.detail = detail
        self.request_id = request_id


class Unreachable(ClientError):
    """No answer, or one that is not FreqMerge's."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One label; `probability` is 0..1, `superclass` None where the model has none."""

    class_id: int
    label: str
    superclass: str | None
    probability: float


@dataclass(frozen=True, slots=True)
class Answer:
    """Labels of one picture, most probable first; `heatmap_url` is None where the service keeps no pictures."""

    predictions: tuple[Prediction, ...]
    heatmap_url: str | None
    body: dict[str, Any]
    """The whole answer, as docs/reference/api.md describes it."""


class Client:
    """Asks one service; `url` may have a path prefix. Raises `Refused` or `Unreachable`."""

    def __init__(self, url: str = DEFAULT_URL, api_key: str | None = None, timeout_s: float = 60) -> None:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise ValueError(f"expected a URL such as http://localhost:8000, found {url!r}")
        self._base = url.rstrip("/") + "/"
        self._headers = {"X-API-Key": api_key} if api_key else {}
        self._timeout_s = timeout_s

    def classify(self, photo: Photo, top_k: int = 5) -> Answer:
        """The labels of a picture."""
        url, text = self._ask(f"classify?{urlencode({'top_k': top_k})}", _bytes_of(photo))
        try:
            body = json.loads(text)
            predictions = tuple(Prediction(**prediction) for prediction in body["predictions"])
            heatmap = body["heatmap_url"]
        except (ValueError, KeyError, TypeError):
            raise _stranger(url) from None
        return Answer(predictions, urljoin(url, heatmap) if heatmap else None, body)

    def heatmap(self, photo: Photo | Answer, **parameters: str | float) -> bytes:
        """The drawing of a picture's heatmap as a file; `parameters` as in docs/reference/api.md: view, score, format…

        An `Answer` of `classify` saves sending the picture again, for as long as the service keeps it.
        """
        query = urlencode(parameters)
        if not isinstance(photo, Answer):
            return self._ask(f"heatmap?{query}", _bytes_of(photo))[1]
        if photo.heatmap_url is None:
            raise ValueError("expected an answer with a heatmap_url, found one of a service that keeps no pictures")
        return self._ask(f"{photo.heatmap_url}&{query}")[1]

    def _ask(self, path: str, data: bytes | None = None) -> tuple[str, bytes]:
        """The URL that was asked, and the answer's body."""
        url = urljoin(self._base, path)
        headers = self._headers | ({} if data is None else {"Content-Type": "application/octet-stream"})
        connection = self._connection(url)
        try:
            # A service that refuses a large picture answers, and closes, before it has read it.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request("GET" if data is None else "POST", _target(url), data, headers)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise Unreachable(f"expected FreqMerge at {self._base}, found none: {why}; is it running?") from None
        finally:
            connection.close()
        if answer.status != 200:
            raise _refusal(answer.status, body, url)
        return url, body

    def _connection(self, url: str) -> http.client.HTTPConnection:
        parts = urlsplit(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        return kind(parts.hostname or "", parts.port, timeout=self._timeout_s)


def _target(url: str) -> str:
    """Path and query of a URL, as a request line has them."""
    parts = urlsplit(url)
    return f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"


def _bytes_of(photo: Photo) -> bytes:
    return photo if isinstance(photo, bytes) else Path(photo).read_bytes()


def _refusal(status: int, body: bytes, url: str) -> ClientError:
    try:
        problem = json.loads(body)
        return Refused(
            status,
            problem["title"],
            problem["detail"],
            str(problem["type"]).rpartition(":")[2],
            str(problem["request_id"]),
        )
    except (ValueError, KeyError, TypeError):
        return _stranger(url, f"status {status}")


def _stranger(url: str, found: str = "another answer") -> Unreachable:
    return Unreachable(f"expected FreqMerge at {url}, found {found} of something else; check the URL")
