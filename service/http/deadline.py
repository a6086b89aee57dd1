"""How long one request may wait for its answers."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from service.http.faults import Fault, bad_parameter
from service.settings import Settings

HEADER = "X-Request-Timeout-Ms"


@dataclass(frozen=True, slots=True)
class Deadline:
    """Seconds from the last byte of a request to its answer, after which it ends with 504."""

    timeout_s: float

    @classmethod
    def of(cls, request: Request, settings: Settings) -> Deadline:
        """The service's own limit, or less if the client asks for less; raises `BadParameter`."""
        wanted = request.headers.get(HEADER)
        if wanted is None:
            return cls(settings.request_timeout_s)
        return cls(min(settings.request_timeout_s, _milliseconds(wanted) / 1000))


def _milliseconds(text: str) -> int:
    text = text.strip()
    if text.isascii() and text.isdecimal() and len(text) <= 12 and int(text) > 0:
        return int(text)
    raise bad_parameter(
        [Fault(HEADER, "a whole number of milliseconds, 1 or more", text[:40])],
        "leave the header out to wait as long as the service allows",
    )
