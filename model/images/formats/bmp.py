"""BMP: what its header announces."""

from __future__ import annotations

import struct

from model.images.formats.essence import Essence

HEADER_SIZES = frozenset({12, 16, 40, 52, 56, 64, 108, 124})
"""Lengths of the second header, of all versions."""

_PIXEL_S, _BYTE_S, _RUN_S = 15e-9, 5e-9, 1e-6
"""Of raw pixels, and of run lengths, which Pillow expands in Python."""

_RUN_LENGTHS = (1, 2)


def announced(data: bytes) -> bool:
    """Whether the first bytes are those of a BMP: its two letters alone begin many a text."""
    return data.startswith(b"BM") and int.from_bytes(data[14:18], "little") in HEADER_SIZES


def essence(data: bytes) -> Essence:
    """The file as it is; raises what `DAMAGED` lists for a broken header."""
    compression = 0
    if data[14] == 12:
        width, height = struct.unpack_from("<HH", data, 18)
    else:
        width, height, _, _, compression = struct.unpack_from("<iiHHI", data, 18)
    per_byte = _RUN_S if compression in _RUN_LENGTHS else _BYTE_S
    return Essence(data, abs(width), abs(height), abs(width * height) * _PIXEL_S + len(data) * per_byte)
