"""Tensor elements of a request, from JSON or from the binary extension. Pure; raises `BadInference`."""

from __future__ import annotations

import base64
import math
import string
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import BadInference

LENGTH_BYTES = 4
"""A BYTES element in binary: its length, little-endian, then its bytes."""

_BLANKS = b" \t\r\n"
_STANDARD = (string.ascii_letters + string.digits + "+/").encode()
_URL_SAFE = b"-_"
_TO_STANDARD = bytes.maketrans(_URL_SAFE, b"+/")


def binary_texts(raw: memoryview, name: str, count: int) -> list[bytes]:
    """The elements of a BYTES tensor in binary."""
    texts: list[bytes] = []
    while raw and len(texts) < count:
        length = int.from_bytes(raw[:LENGTH_BYTES], "little")
        if len(raw) < LENGTH_BYTES + length:
            raise BadInference(
                f"{name}: expected element {len(texts)} to have {length:,} bytes after its 4-byte length, "
                f"found {max(0, len(raw) - LENGTH_BYTES):,}"
            )
        texts.append(bytes(raw[LENGTH_BYTES : LENGTH_BYTES + length]))
        raw = raw[LENGTH_BYTES + length :]
    if raw or len(texts) != count:
        more = f"{len(raw):,} more bytes" if raw else "the end"
        raise BadInference(f"{name}: expected {count} elements as its shape says, found {more} after {len(texts)}")
    return texts


def json_texts(data: Any, name: str, count: int) -> list[bytes]:
    """The elements of a BYTES tensor in JSON: texts in base64 or base64url, in a list or in lists of one."""
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
    """The bytes of a text in either alphabet of RFC 4648, with or without padding and line breaks."""
    if not isinstance(text, str):
        raise _not_base64(name, repr(text)[:40])
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:  # not in the plain form, or not at all; binascii.Error is one too
        return base64.b64decode(_plain(text, name))


def _plain(text: str, name: str) -> bytes:
    """The text in the standard alphabet, padded and in one line; raises `BadInference`, naming the cause."""
    symbols = text.encode("ascii", "replace").translate(None, _BLANKS)
    digits = symbols.rstrip(b"=")
    if strange := digits.translate(None, _STANDARD + _URL_SAFE):
        raise _not_base64(name, f"{chr(strange[0])!r} in {text[:40]!r}")
    if _has_any(digits, b"+/") and _has_any(digits, b"-_"):
        raise _not_base64(name, "a mixture of two alphabets, + or / of base64 beside - or _ of base64url")
    if len(digits) % 4 == 1 or len(symbols) - len(digits) > 2:
        padding = len(symbols) - len(digits)
        raise _not_base64(name, f"{len(digits):,} characters and {padding:,} of padding, which no file encodes to")
    return digits.translate(_TO_STANDARD) + b"=" * (-len(digits) % 4)


def _has_any(text: bytes, symbols: bytes) -> bool:
    return any(symbol in text for symbol in symbols)


def _not_base64(name: str, found: str) -> BadInference:
    return BadInference(
        f"{name}: expected an encoded picture as a text in base64, found {found}; "
        "or send it as it is, with the binary tensor data extension"
    )
