"""The store of recent images in memory."""

from __future__ import annotations

import re
import secrets
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.store.image_store import ENTRY_OVERHEAD_BYTES, IDS_DRAWN, Held, StoredImage, new_ids, stored_image
from service.store.memory_store import MemoryStore
from tests.support.doubles import SCORES, SOURCE_MAPS

pytestmark = pytest.mark.anyio

SMALL = ENTRY_OVERHEAD_BYTES + SCORES.nbytes + SOURCE_MAPS.nbytes


def image(data_bytes: int = 100) -> StoredImage:
    return stored_image(bytes(data_bytes), SCORES, SOURCE_MAPS)


async def put(store: MemoryStore, kept: StoredImage | None = None) -> str | None:
    [image_id] = await store.put_many([kept or image()])
    return image_id


async def test_an_image_comes_back_as_it_was() -> None:
    store = MemoryStore(10, 1 << 20, 60)
    image_id = await put(store, stored_image(b"abc", SCORES, SOURCE_MAPS))
    assert image_id is not None
    found = await store.get(image_id)
    assert found is not None
    assert found.data == b"abc"
    assert found.frequency_scores.tolist() == SCORES.tolist()
    assert found.source_maps.tolist() == SOURCE_MAPS.tolist()


def test_an_entry_keeps_rows_of_its_own_and_not_the_batch_they_came_from() -> None:
    batch = np.zeros((32, 2, 6), np.float32)
    kept = stored_image(b"", batch[3], SOURCE_MAPS)
    assert kept.frequency_scores.base is None


async def test_the_least_recently_used_image_goes_first_when_there_are_too_many() -> None:
    store = MemoryStore(2, 1 << 20, 60)
    first, second = await put(store), await put(store)
    assert first
    assert second
    assert await store.get(first) is not None
    third = await put(store)
    assert third
    assert [await store.get(image_id) is not None for image_id in (first, second, third)] == [True, False, True]


async def test_images_go_until_a_new_one_fits_into_the_bytes() -> None:
    store = MemoryStore(10, 3 * (SMALL + 100), 60)
    small = [await put(store) for _ in range(3)]
    large = await put(store, image(SMALL + 200))
    assert large
    assert [await store.get(image_id or "") is not None for image_id in (*small, large)] == [
        False,
        False,
        True,
        True,
    ]
    assert store.held.size_bytes == 3 * (SMALL + 100)


async def test_an_image_larger_than_the_store_is_not_kept_and_evicts_nothing() -> None:
    store = MemoryStore(10, 5000, 60)
    small = await put(store)
    assert await put(store, image(5000)) is None
    assert await store.get(small or "") is not None


async def test_a_store_of_no_images_keeps_nothing() -> None:
    store = MemoryStore(0, 1 << 20, 60)
    assert await put(store) is None
    assert store.held == Held(0, 0)


async def test_an_image_is_gone_when_its_time_is_over_even_if_it_is_looked_at() -> None:
    now = [0.0]
    store = MemoryStore(10, 1 << 20, 60, clock=lambda: now[0])
    early = await put(store) or ""
    now[0] = 30.0
    late = await put(store) or ""
    now[0] = 59.9
    assert await store.get(early) is not None
    now[0] = 60.0
    assert await store.get(early) is None
    assert await store.get(late) is not None
    now[0] = 90.0
    store.expire()
    assert store.held == Held(0, 0)


@given(st.lists(st.tuples(st.integers(0, 3000), st.floats(0, 5)), max_size=40), st.integers(1, 5))
async def test_whatever_comes_the_limits_hold_and_the_bytes_add_up(puts: list[tuple[int, float]], most: int) -> None:
    now = [0.0]
    store = MemoryStore(most, 8000, 10, clock=lambda: now[0])
    ids = []
    for size, passed in puts:
        now[0] += passed
        ids.append(await put(store, image(size)))
        assert store.held.images <= most
        assert store.held.size_bytes <= 8000
    kept = [found for image_id in ids if image_id and (found := await store.get(image_id))]
    assert len(kept) == store.held.images
    assert store.held.size_bytes == sum(found.size_bytes for found in kept)


def test_ids_differ_hold_128_bits_and_are_drawn_many_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    token_bytes, drawn = secrets.token_bytes, list[int]()

    def counted(size: int) -> bytes:
        drawn.append(size)
        return token_bytes(size)

    monkeypatch.setattr(secrets, "token_bytes", counted)
    ids = list(islice(new_ids(), 2 * IDS_DRAWN + 1))
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{22}", image_id) for image_id in ids)
    assert drawn == [16 * IDS_DRAWN] * 3
