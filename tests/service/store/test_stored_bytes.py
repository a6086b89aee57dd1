"""Recent images as bytes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from model.config import SCORE_NAMES
from service.store.image_store import StoredImage
from service.store.stored_bytes import MAGIC, packed, unpacked
from tests.support.doubles import SCORES, SOURCE_MAPS

OWNERS = st.integers(-1, (1 << 31) - 1)
FLOATS = st.floats(width=32)


@st.composite
def images(draw: st.DrawFn) -> StoredImage:
    blocks, patches = draw(st.integers(0, 4)), draw(st.integers(0, 9))
    scores = draw(arrays.arrays(np.float32, (len(SCORE_NAMES), patches), elements=FLOATS))
    maps = draw(arrays.arrays(np.int64, (blocks, patches), elements=OWNERS))
    return StoredImage(draw(st.binary(max_size=200)), scores, maps)


@given(images())
def test_every_image_comes_back_bit_by_bit(image: StoredImage) -> None:
    found = unpacked(packed(image))
    assert found is not None
    assert found.data == image.data
    assert (found.frequency_scores.dtype, found.source_maps.dtype) == (np.float32, np.int64)
    assert found.frequency_scores.tobytes() == image.frequency_scores.tobytes()
    assert found.frequency_scores.shape == image.frequency_scores.shape
    assert found.source_maps.tolist() == image.source_maps.tolist()
    assert found.source_maps.shape == image.source_maps.shape


@given(st.binary(max_size=60))
def test_bytes_that_are_no_image_are_none(value: bytes) -> None:
    assert unpacked(value) is None
    found = unpacked(MAGIC + value)
    assert found is None or packed(found) == MAGIC + value or np.isnan(found.frequency_scores).any()


def test_an_image_that_was_cut_within_its_arrays_is_none() -> None:
    whole = packed(StoredImage(b"", SCORES, SOURCE_MAPS))
    assert [unpacked(whole[:length]) for length in range(len(whole))] == [None] * len(whole)


def test_an_image_of_another_version_is_none() -> None:
    whole = packed(StoredImage(b"abc", SCORES, SOURCE_MAPS))
    assert [unpacked(magic + whole[4:]) for magic in (b"FQM1", b"FQM3")] == [None, None]


def test_an_image_costs_its_file_and_four_bytes_per_patch_and_score_or_map() -> None:
    assert len(packed(StoredImage(bytes(1000), SCORES, SOURCE_MAPS))) == 12 + 4 * 6 * (2 + 2) + 1000
