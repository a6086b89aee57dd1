"""Faults that need a real process: a dying engine, a half-closed connection, SIGTERM under load."""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.support.doubles import picture
from tests.support.mortal import DEADLY, SLOW
from tests.support.process import READ_ONLY, Process
from tests.support.wire import problem


@pytest.fixture
def mortal() -> Iterator[Process]:
    process = Process(
        module="tests.support.mortal", port=0, max_batch_size=1, log_sample=1, shutdown_delay_s=0.7, engine="eager"
    )
    process.told("ready")
    yield process
    process.stop()


def post(client: httpx.Client, value: int = 7) -> httpx.Response:
    return client.post("/classify", content=picture(value), headers={"Content-Type": "image/png"})


def sample(client: httpx.Client, name: str) -> float:
    [line] = [line for line in client.get("/metrics").text.splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[1])


def test_when_the_engine_dies_all_who_wait_are_told_and_the_process_ends_with_one(mortal: Process) -> None:
    with mortal.client() as client, ThreadPoolExecutor(4) as pool:
        assert post(client).status_code == 200
        running = pool.submit(post, client, SLOW)
        while sample(client, "freqmerge_http_requests_in_flight") < 2:
            pass
        waiting = [pool.submit(post, client, value) for value in (DEADLY, 1, 2)]
        ends = [future.result() for future in waiting]
        began = time.monotonic()
        assert running.result().status_code == 200
        assert [end.status_code for end in ends].count(503) >= 1
        for end in ends:
            if end.status_code != 200:  # those that were queued before the deadly one
                problem(end, 503, "not_ready")
    code, text = mortal.ended()
    assert code == 1
    assert time.monotonic() - began < 2
    assert text.splitlines()[-1] == "freqmerge: the engine thread died: SystemExit: killed"


def test_a_half_closed_connection_counts_as_a_client_that_left_and_leaves_nothing_behind(mortal: Process) -> None:
    data = picture(SLOW)
    with mortal.client() as client:
        address = (client.base_url.host, client.base_url.port or 0)
        with socket.create_connection(address, timeout=30) as raw:
            head = f"POST /classify HTTP/1.1\r\nHost: x\r\nX-Request-ID: half\r\nContent-Length: {len(data)}\r\n\r\n"
            raw.sendall(head.encode() + data)
            raw.shutdown(socket.SHUT_WR)
            assert raw.recv(4096) == b""
        assert mortal.told("request", request_id="half")["code"] == 499
        assert post(client).status_code == 200
        assert sample(client, "freqmerge_http_requests_in_flight") == 1, "the scrape itself"
        assert sample(client, "freqmerge_queue_images") == 0


def test_sigterm_under_load_loses_no_request_and_exits_with_zero(mortal: Process) -> None:
    leave = threading.Event()
    answers: list[int] = []

    def ask_until_told_to_leave() -> None:
        with mortal.client() as client:
            while not leave.is_set():
                answers.append(post(client).status_code)

    with mortal.client() as balancer, ThreadPoolExecutor(6) as pool:
        callers = [pool.submit(ask_until_told_to_leave) for _ in range(6)]
        while len(answers) < 20:
            leave.wait(0.01)
        mortal.popen.send_signal(signal.SIGTERM)
        while (answer := balancer.get("/ready")).status_code == 200:
            pass
        problem(answer, 503, "draining")
        assert answer.headers["connection"] == "close", "the next request must not meet a closing connection"
        before = len(answers)
        while len(answers) < before + 20:
            leave.wait(0.01)
        leave.set()
        for caller in callers:
            caller.result()  # raises what a lost request raised
    assert set(answers) == {200}
    code, text = mortal.ended()
    assert code == 0, text
    assert "Traceback" not in text


def test_what_a_taken_connection_sends_as_the_listener_closes_is_answered_and_not_lost(mortal: Process) -> None:
    data = picture(7)
    request = f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
    with mortal.client() as client:
        address = (client.base_url.host, client.base_url.port or 0)
        with socket.create_connection(address, timeout=30) as taken:
            client.get("/live")  # the server has surely taken the connection before
            mortal.popen.send_signal(signal.SIGTERM)
            while listens(address):
                time.sleep(0.005)
            taken.sendall(request)
            answer = taken.recv(65536)
    assert answer.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 503 ")), answer
    code, text = mortal.ended()
    assert code == 0, text


def listens(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def test_the_processes_of_these_tests_cannot_write_a_file(tmp_path: Path) -> None:
    done = subprocess.run(
        [*READ_ONLY, "sh", "-c", 'echo x > "$0"', str(tmp_path / "file")], capture_output=True, check=False
    )
    assert done.returncode != 0
    assert (tmp_path / "file").read_bytes() == b""
