"""Tensor elements of a request, from JSON or from the binary extension. Pure; raises `BadInference`."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import BadInference

LENGTH_BYTES = 4
"""A BYTES element in binary: its length, little-endian, then its bytes."""


def binary_texts(raw: memoryview, name: str, count: int) -> list[bytes]:
    """The elements of a BYTES tensor in binary."""
    found: list[bytes] = []
    while raw and len(found) < count:
        length = int.from_bytes(raw[:LENGTH_BYTES], "little")
        if len(raw) < LENGTH_BYTES + length:
            raise BadInference(
                f"{name}: expected element {len(found)} to have {length:,} bytes after its 4-byte length, "
                f"found {max(0, len(raw) - LENGTH_BYTES):,}"
            )
        found.append(bytes(raw[LENGTH_BYTES : LENGTH_BYTES + length]))
        raw = raw[LENGTH_BYTES + length :]
    if raw or len(found) != count:
        more = f"{len(raw):,} more bytes" if raw else "the end"
        raise BadInference(f"{name}: expected {count} elements as its shape says, found {more} after {len(found)}")
    return found


def json_texts(data: Any, name: str, count: int) -> list[bytes]:
    """The elements of a BYTES tensor in JSON: texts in base64, in a list or in lists of one."""
    texts = [text for row in data for text in (row if isinstance(row, list) else [row])]
    if len(texts) != count:
        raise BadInference(f"{name}: expected {count} elements as its shape says, found {len(texts)}")
    return [_decoded(text, f"{name}[{index}]") for index, text in enumerate(texts)]


def binary_levels(raw: memoryview, name: str, shape: Sequence[int]) -> NDArray[np.uint8]:
    """A UINT8 tensor in binary."""
    if len(raw) != math.prod(shape):
        raise BadInference(f"{name}: expected {math.prod(shape):,} bytes for shape {list(shape)}, found {len(raw):,}")
    return np.frombuffer(raw, np.uint8).reshape(shape)


def json_levels(data: Any, name: str, shape: Sequence[int]) -> NDArray[np.uint8]:
    """A UINT8 tensor in JSON: whole numbers, flat or nested."""
    try:
        levels = np.asarray(data)
    except (ValueError, OverflowError):  # ragged, or nested beyond numpy's limit
        levels = np.empty(0, object)
    if levels.dtype.kind not in "iu" or levels.size != math.prod(shape):
        raise BadInference(
            f"{name}: expected {math.prod(shape):,} whole numbers 0..255 for shape {list(shape)}, "
            "found others, or another number of them"
        )
    if levels.min() < 0 or levels.max() > 255:
        raise BadInference(f"{name}: expected numbers 0..255, found {levels.min()}..{levels.max()}")
    return levels.astype(np.uint8).reshape(shape)


def _decoded(text: Any, name: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True) if isinstance(text, str) else _not_base64(text, name)
    except (binascii.Error, ValueError):
        return _not_base64(text, name)


def _not_base64(found: Any, name: str) -> bytes:
    raise BadInference(
        f"{name}: expected an encoded picture as a text in base64, found {str(found)[:40]!r}; "
        "or send it as it is, with the binary tensor data extension"
    ) from None
