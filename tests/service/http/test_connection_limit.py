"""More connections than the service has: those that keep it waiting give way, and operators get in."""

from __future__ import annotations

import contextlib
import gc
import select
import socket
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI

from service.app import create_app
from service.errors import StartupError
from service.http import server
from service.http.protocol import GuardedProtocol
from service.settings import MIB, Settings
from tests.service.conftest import DEADLINE_S
from tests.support.doubles import FakeEngine, loader, picture
from tests.support.live import serving
from tests.support.sockets import answers, connect, only, rejected, wait_until
from tests.support.wire import problem

LIMIT = 4
POST = b"POST /classify HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
ENDLESS = POST % (8 * MIB)


class Crowd:
    """A service of four connections, and the test's own."""

    def __init__(self, app: FastAPI, url: str, engine: FakeEngine, stack: contextlib.ExitStack) -> None:
        self.app = app
        self.url = url
        self.engine = engine
        self._stack = stack

    def connect(self, say: bytes = b"") -> socket.socket:
        raw = self._stack.enter_context(connect(self.url))
        raw.sendall(say)
        return raw

    def classify(self, value: int) -> int:
        """The class that a well-behaved client is told."""
        with self.connect(POST % len(picture(value)) + picture(value)) as raw:
            answer = only(answers(raw))
        assert answer.status_code == 200, answer.text
        found: int = answer.json()["predictions"][0]["class_id"]
        return found


def stuck(app: FastAPI) -> int:
    """Connections whose clients do not read."""
    protocols = [found for found in gc.get_objects() if isinstance(found, GuardedProtocol)]
    ours = [found.flow for found in protocols if found.service is app.state.service]
    return sum(flow is not None and flow.write_paused for flow in ours)


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    engine = FakeEngine()
    app = create_app(Settings(max_connections=LIMIT, header_timeout_s=3600, body_timeout_s=3600), loader(engine))
    with serving(app) as url, contextlib.ExitStack() as stack:
        stack.callback(engine.release)
        yield Crowd(app, url, engine, stack)


@pytest.mark.parametrize("begun", [b"GET /live HTTP/1.1\r\nX: ", ENDLESS + b"\xff\xd8"], ids=["header", "body"])
def test_many_clients_whose_requests_never_end_keep_nobody_out_and_the_first_hear_why(
    crowd: Crowd, begun: bytes
) -> None:
    tricklers = []
    for number in range(3 * LIMIT):
        tricklers.append(crowd.connect(begun))
        assert crowd.classify(number) == number
    for raw in tricklers[: 2 * LIMIT]:
        answer = only(answers(raw))
        assert f"fewer than {LIMIT} open connections" in problem(answer, 503, "crowded")["detail"]
        assert (answer.headers["connection"], answer.headers["retry-after"]) == ("close", "1")
    assert rejected(crowd.app, "crowded") >= 2 * LIMIT


def test_a_connection_that_says_nothing_gives_way_without_a_word(crowd: Crowd) -> None:
    silent = [crowd.connect() for _ in range(LIMIT)]
    assert crowd.classify(1) == 1
    assert silent[0].recv(1) == b""
    assert rejected(crowd.app, "crowded") == 0


def test_a_body_that_makes_progress_stays_and_one_that_began_later_and_makes_none_gives_way(crowd: Crowd) -> None:
    data = picture(5) + bytes(MIB)
    steady = crowd.connect(POST % len(data))
    wait_until(lambda: crowd.app.state.service.metrics.in_flight == 1)
    tricklers = [crowd.connect(ENDLESS) for _ in range(LIMIT - 1)]
    wait_until(lambda: crowd.app.state.service.metrics.in_flight == LIMIT)
    steady.sendall(data[:-1])
    wait_until(lambda: crowd.app.state.service.bodies.held == len(data) - 1)
    assert crowd.classify(1) == 1
    problem(only(answers(tricklers[0])), 503, "crowded")
    steady.sendall(data[-1:])
    assert only(answers(steady)).status_code == 200


def test_where_each_is_owed_an_answer_a_new_one_is_refused_but_probes_and_metrics_are_answered(crowd: Crowd) -> None:
    crowd.engine.hold()
    data = picture(1)
    busy = [crowd.connect(POST % len(data) + data) for _ in range(LIMIT)]
    wait_until(lambda: crowd.app.state.service.batcher.counts.admitted == LIMIT)
    refused = httpx.post(f"{crowd.url}/classify", content=data)
    assert problem(refused, 503, "crowded")["instance"] == "/classify"
    assert (refused.headers["connection"], refused.headers["retry-after"]) == ("close", "1")
    for path in ("/live", "/ready", "/metrics", "/v2/health/ready"):
        answer = httpx.get(crowd.url + path)
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
    assert rejected(crowd.app, "crowded") == 1
    crowd.engine.release()
    assert [only(answers(raw)).status_code for raw in busy] == [200] * LIMIT
    assert crowd.classify(2) == 2


def test_clients_that_do_not_read_their_answers_give_way_though_they_are_owed_more(crowd: Crowd) -> None:
    for _ in range(LIMIT):
        crowd.connect(b"GET /static/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n" * 50)  # 1.5 MB each
    wait_until(lambda: stuck(crowd.app) == LIMIT)
    for number in range(2 * LIMIT):
        assert crowd.classify(number) == number


def test_a_kept_connection_is_not_in_the_way_and_its_client_is_not_cut_off_below_the_limit(crowd: Crowd) -> None:
    kept = [crowd.connect(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(LIMIT)]
    for raw in kept:
        assert select.select([raw], [], [], DEADLINE_S)[0]
        assert raw.recv(65536).startswith(b"HTTP/1.1 200 ")
    kept[0].sendall(b"GET /live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert only(answers(kept[0])).status_code == 200


@pytest.mark.parametrize(("soft", "set_to"), [(1024, [(1280, 4096)]), (4096, []), (-1, [])])
def test_a_limit_of_open_files_that_may_be_raised_is_raised(
    monkeypatch: pytest.MonkeyPatch, soft: int, set_to: list[tuple[int, int]]
) -> None:
    import resource

    found: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (soft, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: found.append(limits))
    server.allow_files(1024)
    assert found == set_to


def test_a_limit_of_open_files_that_cannot_be_raised_is_told_with_both_remedies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda kind: (512, 1024))
    with pytest.raises(StartupError, match=r"limit of 1,280 open files .* found 1,024; raise it .*MAX_CONNECTIONS"):
        server.allow_files(1024)
