"""What accompanies one HTTP request through the app: its id, its stage times, and why it was refused."""

from __future__ import annotations

import random
import re
import time
from dataclasses import dataclass, field

from starlette.requests import Request

from service.http.pace import Arrival, Arrivals
from service.observe.stage_times import Stages

SCOPE_KEY = "freqmerge.exchange"

_ACCEPTABLE_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}\Z")


@dataclass(slots=True)
class Exchange:
    """One request and its answer."""

    request_id: str
    arrivals: Arrivals
    """What its body is one of while it arrives."""
    started: float = field(default_factory=time.perf_counter)
    stages: Stages = field(default_factory=Stages)
    body: Arrival | None = None
    """Its body, once that is read; `held` is its part of the `BodyBudget`, until the answer has left."""
    refusal: str | None = None
    """The `reason` of the error that it was answered with."""
    trace_id: str | None = None
    """The trace that it belongs to, once it has its answer and if it is traced."""


def request_id(given: str | None) -> str:
    """The client's own id if it is harmless, a random one otherwise."""
    return given if given and _ACCEPTABLE_ID.match(given) else f"{random.getrandbits(64):016x}"


def exchange_of(request: Request) -> Exchange:
    """The exchange that the middleware opened for this request."""
    exchange: Exchange = request.scope[SCOPE_KEY]
    return exchange
