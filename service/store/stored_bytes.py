"""A recent image as one row of bytes, and back: a versioned header, two plain arrays, the uploaded file.

Whatever a server gives back is only measured and copied, never unpickled or run.
"""

from __future__ import annotations

import struct

import numpy as np

from model.config import SCORE_NAMES
from service.store.image_store import StoredImage

MAGIC = b"FQM2"
"""Format and version: another version's images count as unknown. FQM1 had one score."""

_HEADER = struct.Struct("<4sII")
"""Magic, merging blocks, patches."""

_SCORE, _OWNER = np.dtype("<f4"), np.dtype("<i4")


def packed(image: StoredImage) -> bytes:
    """The image in bytes; an owner of a patch takes four of them, half of what it takes in memory."""
    header = _HEADER.pack(MAGIC, *image.source_maps.shape)
    scores, maps = image.frequency_scores.astype(_SCORE), image.source_maps.astype(_OWNER)
    return b"".join((header, scores.tobytes(), maps.tobytes(), image.data))


def unpacked(value: bytes) -> StoredImage | None:
    """The image of such bytes; None if they are no image of this version."""
    if len(value) < _HEADER.size:
        return None
    magic, blocks, patches = _HEADER.unpack_from(value)
    scores = len(SCORE_NAMES)
    maps_at = _HEADER.size + scores * patches * _SCORE.itemsize
    data_at = maps_at + blocks * patches * _OWNER.itemsize
    if magic != MAGIC or len(value) < data_at:
        return None
    score_values = np.frombuffer(value, _SCORE, scores * patches, _HEADER.size).astype(np.float32)
    maps = np.frombuffer(value, _OWNER, blocks * patches, maps_at).astype(np.int64)
    return StoredImage(value[data_at:], score_values.reshape(scores, patches), maps.reshape(blocks, patches))
