"""Hostile files: only planned statuses, bounded memory, and a service that goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from tests.load.costed_engine import Cost
from tests.load.processes import Server
from tests.load.soak.barrage import PLANNED, bound_bytes, fire
from tests.load.targets import OURS
from tests.support.hostile import DAMAGES, corpus

FILES = 300
MAX_PIXELS = 4_000_000
"""Far below the default, so that the largest bomb that is decoded takes milliseconds."""
DECODE_THREADS = 2


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    settings = {"max_pixels": MAX_PIXELS, "decode_threads": DECODE_THREADS, "store_max_images": 0, "log_sample": 0}
    with OURS.start(Path(), Cost(0.0, 0.0), **settings) as started:
        yield started


def test_hostile_files_get_planned_statuses_in_bounded_memory_and_the_service_goes_on(server: Server) -> None:
    result = asyncio.run(fire(server, corpus(FILES)))
    assert result.unplanned == []
    assert result.statuses.total() == FILES
    assert set(result.statuses) == PLANNED  # a corpus that misses a kind of refusal would prove little
    assert result.grown_bytes < bound_bytes(DECODE_THREADS, MAX_PIXELS)
    assert "Traceback" not in server.log()


def test_the_corpus_is_the_same_for_the_same_seed_and_holds_every_kind_of_damage() -> None:
    kinds = len(DAMAGES)
    first, again, other = (list(corpus(kinds, seed)) for seed in (0, 0, 1))
    assert first == again
    assert [file.data for file in first] != [file.data for file in other]
    assert {file.how.split(": ")[1].split(" of ")[0] for file in first} == {name.split(" of ")[0] for name in DAMAGES}
    assert list(islice(corpus(10**9), kinds)) == first  # a longer corpus begins with the shorter one
