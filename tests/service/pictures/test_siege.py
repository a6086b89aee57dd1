"""No file stops a real server: what each is answered, and what becomes of the others' pictures meanwhile."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from PIL import Image

from tests.load.raw_http import request
from tests.service.conftest import DEADLINE_S
from tests.support.costly import COSTLY, many_scans, noisy_jpeg, png
from tests.support.doubles import picture
from tests.support.hostile import chunk, saved
from tests.support.process import Process
from tests.support.wire import problem

pytestmark = pytest.mark.slow

SENDERS = 2
SIEGE_S = 0.5
"""Of each kind of file; every sender ends what it has begun."""

PATIENCE_MS = 5000
"""How long a sender waits: on a busy machine a planned 504 ends the siege."""

PACE_S = 3.0
"""How long a normal picture may take meanwhile, and the decoder to be idle afterwards."""

SLOWEST = "PNG of the slowest kind"


class Case(NamedTuple):
    """A file and what it is answered: the reason of a refusal, or the beginning of a warning."""

    make: Callable[[], bytes]
    reason: str = ""
    told: str = ""


def cut(share: float) -> bytes:
    """The first part of a JPEG."""
    whole = noisy_jpeg(quality=90)
    return whole[: int(len(whole) * share)]


def wrong_checksum(kind: bytes, body: bytes) -> bytes:
    """A PNG with a damaged chunk before its pixels."""
    plain, bad = saved(Image.new("RGB", (64, 64), "red"), "PNG"), bytearray(chunk(kind, body))
    bad[-1] ^= 1
    return plain[:33] + bad + plain[33:]


def wrong_header() -> bytes:
    """A PNG whose header has a checksum of something else."""
    plain = saved(Image.new("RGB", (64, 64), "red"), "PNG")
    return plain[:29] + bytes(4) + plain[33:]


def transparent(depth: int, colour: int, pixel: bytes, byte: bytes) -> bytes:
    """A PNG of 8 × 8 pixels, all of the colour that is transparent."""
    row = b"\0" + byte * (8 * depth * (3 if colour == 2 else 1) // 8 // len(byte))
    return png(8, 8, depth, colour, row * 8, chunk(b"tRNS", pixel))


RGB16 = b"\x12\x34\x56\x78\x9a\xbc"

CASES = {
    "JPEG without its end marker": Case(lambda: noisy_jpeg()[:-2], told="the file is cut off; its end marker"),
    "JPEG without its last rows": Case(lambda: cut(0.97), told="the file is cut off; the last 3."),
    "half a JPEG": Case(lambda: cut(0.5), "undecodable", "of the picture is missing"),
    "PNG with a wrong pHYs": Case(lambda: wrong_checksum(b"pHYs", bytes(9))),
    "PNG with a wrong tEXt": Case(lambda: wrong_checksum(b"tEXt", b"key\0word")),
    "PNG with a wrong iTXt": Case(lambda: wrong_checksum(b"iTXt", b"key\0\0\0\0\0word")),
    "PNG with a wrong IHDR": Case(wrong_header, "undecodable", "structure is damaged"),
    "transparent 16-bit RGB": Case(lambda: transparent(16, 2, RGB16, RGB16)),
    "transparent 2-bit grey": Case(lambda: transparent(2, 0, b"\0\2", b"\xaa")),
    "JPEG of 150 scans": Case(lambda: many_scans(1000, 150)),
}

SHOWN, REFUSED = {"200"}, {"422 too_costly"}
ENDS = {
    "scans over many blocks": REFUSED,
    "scans over few blocks": REFUSED,
    "EXIF segments": REFUSED,
    "profile segments": REFUSED,
    "long profile segments": SHOWN,
    "Photoshop segments": SHOWN,
    "empty comments": REFUSED,
    "tables": REFUSED,
    "fill bytes": SHOWN,
    "PNG text": REFUSED,
    "PNG empty data": REFUSED,
    "PNG palettes": SHOWN,
    "PNG profiles": SHOWN,
    "PNG texts that unpack": SHOWN,
    "PNG EXIF": SHOWN,
    SLOWEST: SHOWN | REFUSED,
    "GIF comments": SHOWN,
    "GIF short comments": REFUSED,
    "GIF junk": SHOWN,
    "WebP chunks": SHOWN,
    "BMP runs": SHOWN | REFUSED,
    "AVIF": SHOWN,
}
"""How each costly kind ends; where it is either, the core's speed decides."""

LATE = "504 deadline"


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    process = Process(module="tests.load.costed_server", port=0)
    try:
        process.told("ready")
        with process.client() as client, ThreadPoolExecutor(SENDERS) as pool:
            avif = picture(format="AVIF")  # waits for the processes that decode, which start beside the service
            answers = list(pool.map(lambda _: client.post("/classify", content=avif), range(SENDERS)))
        assert [answer.status_code for answer in answers] == [200] * SENDERS
        yield process
    finally:
        process.stop()


@pytest.fixture(scope="module")
def client(server: Process) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@cache
def slowest() -> bytes:
    return COSTLY[SLOWEST]()


def end_of(answer: httpx.Response) -> str:
    """The status, and the reason of a refusal whose document is as it should be."""
    if answer.status_code == 200:
        return "200"
    reason = answer.json()["type"].rsplit(":", 1)[-1]
    problem(answer, answer.status_code, reason)
    return f"{answer.status_code} {reason}"


def besiege(server: Process, data: bytes, leave: threading.Event) -> Counter[str]:
    """How the answers to one sender ended, who sends until it is told to leave."""
    ends: Counter[str] = Counter()
    with server.client() as client:
        while not ends or not leave.is_set():
            answer = client.post("/classify", content=data, headers={"X-Request-Timeout-Ms": str(PATIENCE_MS)})
            ends[end_of(answer)] += 1
    return ends


def classify(client: httpx.Client) -> None:
    """A normal picture, which keeps its pace."""
    began = time.monotonic()
    answer = client.post("/classify", content=picture(90, (640, 480), "JPEG"))
    assert answer.status_code == 200, answer.text
    assert answer.json()["warnings"] == []
    assert time.monotonic() - began < PACE_S


def samples(client: httpx.Client) -> dict[str, float]:
    """Every sample of a scrape."""
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith("freqmerge_")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def decoding(server: Process) -> int:
    """Processes that decode a picture now: the children of the server's children."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
        parents[int(status.parent.name)] = int(fields[1])
    return sum(parents.get(parent) == server.popen.pid for parent in parents.values())


def assert_it_gets_idle(server: Process, client: httpx.Client) -> None:
    """Nothing decodes any more, by the metrics and by the processes that there are, and the service is ready."""
    until = time.monotonic() + PACE_S
    while True:
        told = samples(client)
        busy = told["freqmerge_costly_images"], told["freqmerge_decode_wait_seconds"], told["freqmerge_decoding_bytes"]
        if busy == (0, 0, 0) and decoding(server) == 0 and client.get("/ready").status_code == 200:
            return
        assert time.monotonic() < until, (busy, decoding(server))


def killed(told: dict[str, float], reason: str) -> float:
    return told[f'freqmerge_decodes_killed_total{{reason="{reason}"}}']


@pytest.mark.parametrize("kind", CASES)
def test_a_file_that_once_failed_is_answered_as_its_viewers_expect(kind: str, client: httpx.Client) -> None:
    case = CASES[kind]
    began = time.monotonic()
    answer = client.post("/classify", content=case.make())
    assert time.monotonic() - began < PACE_S
    if case.reason:
        assert case.told in problem(answer, 422, case.reason)["detail"]
    else:
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["warnings"]) == bool(case.told)
        assert "".join(answer.json()["warnings"]).startswith(case.told)


def test_every_costly_kind_is_sent() -> None:
    assert ENDS.keys() == COSTLY.keys()


@pytest.mark.parametrize("kind", ENDS)
def test_two_who_send_costly_files_slow_nobody_down_and_leave_nothing_behind(
    kind: str, server: Process, client: httpx.Client
) -> None:
    data = slowest() if kind == SLOWEST else COSTLY[kind]()
    before, leave = samples(client), threading.Event()
    with ThreadPoolExecutor(SENDERS) as pool:
        senders = [pool.submit(besiege, server, data, leave) for _ in range(SENDERS)]
        until = time.monotonic() + SIEGE_S
        try:
            for sent in itertools.count(1):
                classify(client)
                assert client.get("/ready").status_code == 200, "two do not saturate it"
                if sent >= 3 and time.monotonic() > until:
                    break
        finally:
            leave.set()
    ends = sum((sender.result() for sender in senders), Counter[str]())
    assert_it_gets_idle(server, client)
    assert ends.keys() - {LATE} <= ENDS[kind]
    after = samples(client)
    for end, count in ends.items():
        if end != "200":
            refused = f'freqmerge_rejected_total{{reason="{end.split()[1]}"}}'
            assert after[refused] - before[refused] == count
    for reason in ("silent", "died"):
        assert killed(after, reason) == killed(before, reason)
    assert killed(after, "cpu") - killed(before, "cpu") <= ends["422 too_costly"]


def test_callers_that_got_their_504_cost_nothing_further(server: Process, client: httpx.Client) -> None:
    before = samples(client)

    def send(_: int) -> httpx.Response:
        with server.client() as sender:
            return sender.post("/classify", content=slowest(), headers={"X-Request-Timeout-Ms": "400"})

    with ThreadPoolExecutor(SENDERS) as pool:
        for answer in pool.map(send, range(SENDERS)):
            assert "within 0.4 s" in problem(answer, 504, "deadline")["detail"]
    assert_it_gets_idle(server, client)
    assert killed(samples(client), "abandoned") > killed(before, "abandoned")


def test_a_saturated_decoder_tells_of_it_while_normal_pictures_keep_their_pace_and_is_idle_once_its_senders_left(
    server: Process, client: httpx.Client
) -> None:
    message = request("POST", "/classify", client.base_url.netloc.decode(), slowest(), {"Content-Type": "image/png"})
    with ExitStack() as senders:
        for _ in range(16):
            address = (client.base_url.host, client.base_url.port or 0)
            sender = senders.enter_context(socket.create_connection(address, timeout=DEADLINE_S))
            sender.sendall(message)
        until = time.monotonic() + DEADLINE_S
        while (answer := client.get("/ready")).status_code == 200:
            classify(client)
            assert time.monotonic() < until
        assert "The decoder is saturated" in problem(answer, 503, "not_ready")["detail"]
        classify(client)
        told = samples(client)
        assert told["freqmerge_ready"] == 0
        assert told["freqmerge_decode_wait_seconds"] > 5
        assert 1 <= told["freqmerge_costly_images"] <= told["freqmerge_costly_limit_images"]
    assert_it_gets_idle(server, client)
    assert samples(client)["freqmerge_ready"] == 1
