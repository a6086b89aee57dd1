"""The bytes of a request body, with their number and their time bounded while they arrive."""

from __future__ import annotations

from email.message import Message
from typing import NamedTuple

from starlette.requests import Request

from service.errors import ClientGone, SlowBody, TooLarge, UnsupportedFormat
from service.http.exchange import exchange_of
from service.http.pace import Arrival, Arrivals
from service.runtime.body_budget import BodyBudget
from service.settings import FORM_OVERHEAD_BYTES

_RAW_TYPES = ("image/", "application/octet-stream", "binary/octet-stream")
"""The last is what object stores give to files of no declared type."""
_UNDECLARED = ("", "application/x-www-form-urlencoded")
"""No type at all, or what curl's --data-binary declares if nobody tells it otherwise."""

SLOW_SHARE = 0.5
"""Of the budget for bodies: what slow ones may hold of it where it is full, before the slowest gives way."""


class Upload(NamedTuple):
    """A request body; `boundary` is None for raw bytes, the multipart boundary for a form."""

    data: bytes
    boundary: bytes | None = None


async def read_upload(request: Request, budget: BodyBudget, max_bytes: int) -> Upload:
    """The whole body, of a picture or a form; raises what `read_body` raises."""
    boundary = _boundary(dict(request.scope["headers"]).get(b"content-type", b"").decode("latin-1"))
    overhead = 0 if boundary is None else FORM_OVERHEAD_BYTES
    return Upload(await read_body(request, budget, max_bytes, overhead), boundary)


async def read_body(request: Request, budget: BodyBudget, max_bytes: int, overhead: int = 0) -> bytes:
    """The whole body, `overhead` bytes beside what it is to hold; raises `UnsupportedFormat` (it is compressed),
    `TooLarge`, `SlowBody`, `ClientGone` or `QueueFull` (the bodies of all requests together take more than the budget,
    and slower ones hold too little of it to give way).

    A body that announces too much is refused before a byte of it is read: a client that asked with
    `Expect: 100-continue` then never sends it.
    """
    headers = dict(request.scope["headers"])  # a look-up in Starlette's goes through all of them
    _refuse_compressed(headers.get(b"content-encoding", b"identity").decode("latin-1"))
    limit = max_bytes + overhead
    announced = headers.get(b"content-length", b"")
    if announced.isdigit() and int(announced) > limit:
        raise too_large(max_bytes, f"{int(announced):,} announced in Content-Length")
    exchange = exchange_of(request)
    exchange.body = exchange.arrivals.begin()
    with exchange.body as arrival:
        return await _read(request, budget, limit, max_bytes, arrival)


async def wait_until_gone(request: Request) -> None:
    """Returns when the client has closed the connection; only after the body was read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def too_large(max_bytes: int, found: str) -> TooLarge:
    """The error for a picture of too many bytes."""
    return TooLarge(f"expected at most {max_bytes:,} bytes, found {found}; reduce the picture and send it again")


async def _read(request: Request, budget: BodyBudget, limit: int, max_bytes: int, arrival: Arrival) -> bytes:
    chunks: list[bytes] = []
    arrivals = exchange_of(request).arrivals
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone("the client closed the connection while it sent the body")
        chunk = message.get("body", b"")
        if arrival.size + len(chunk) > limit:
            raise too_large(max_bytes, "more")
        _make_room(budget, arrivals, arrival, len(chunk))
        budget.take(len(chunk))
        arrival.size += len(chunk)
        arrival.held = arrival.size
        chunks.append(chunk)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _make_room(budget: BodyBudget, arrivals: Arrivals, arrival: Arrival, size: int) -> None:
    """Ends bodies that arrive more slowly than this one, the slowest first, until the budget has so many bytes.

    Not where they hold less than `SLOW_SHARE` of it: then it is full of work, and the newest body is one too many.
    """
    if budget.has(size):
        return
    slower = arrivals.slower_than(arrival)
    if sum(other.held for other in slower) < budget.limit * SLOW_SHARE:
        return
    for slowest in slower:
        if budget.has(size):
            return
        budget.give(slowest.held)  # the bytes themselves go with its task, as soon as that has its turn
        slowest.held = 0
        slowest.end(
            SlowBody(
                f"expected a faster request body while all bodies together fill the {budget.limit:,} bytes that they "
                "may take, found the slowest of those that arrive; use a faster connection or try again later",
                headers={"Connection": "close"},
            )
        )


def _refuse_compressed(encoding: str) -> None:
    """Raises `UnsupportedFormat`: a picture is compressed as it is, and what unpacks without end is not worth it."""
    if encoding.lower() not in ("identity", ""):
        raise UnsupportedFormat(f"expected a body without Content-Encoding, found {encoding[:40]!r}; send it as it is")


def _boundary(content_type: str) -> bytes | None:
    """The boundary of a multipart form, None for raw bytes; raises `UnsupportedFormat` for anything else."""
    declared = content_type.partition(";")[0].strip().lower()
    if declared.startswith(_RAW_TYPES) or declared in _UNDECLARED:
        return None
    parsed = Message()
    parsed["content-type"] = content_type
    boundary = parsed.get_boundary()
    if declared == "multipart/form-data" and boundary:
        return boundary.encode("latin-1", "replace")
    raise UnsupportedFormat(
        "expected Content-Type image/*, application/octet-stream, or multipart/form-data with a boundary, "
        f"found {content_type[:100]!r}; send the picture itself as the body, or as the form field 'file'"
    )
