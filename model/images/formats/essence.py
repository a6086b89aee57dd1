"""A picture file without what its pixels do not need, and what decoding it costs at most.

Limits on bytes and pixels do not bound time. Pillow joins segments, comments and profiles one by one, in quadratic
time, and libjpeg passes over all blocks for every scan. So each format's file walks over the parts of a file once,
with a bounded number of steps, leaves out the side notes, and counts what the rest will cost.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

MAX_PARTS = 16_384
"""Most segments, chunks or blocks of a file: a photo has a few dozen, a streamed PNG of 10 MB some thousand."""

MAX_MISSING = 0.05
"""Share of a picture that may be missing at its end."""

ALWAYS_COSTLY_S = float("inf")
"""The cost of a file whose bytes do not bound it."""

_ORIENTATION = 0x0112
_SHORT = 3


class Excessive(ValueError):
    """A file that would take far longer than a picture of its size should."""


class Essence(NamedTuple):
    """The part of a file that its pixels need; what is left out has no influence on them."""

    data: bytes
    width: int
    height: int
    """Pixels as the header announces them."""
    cost_s: float
    """The most CPU time that decoding takes, estimated upwards from constants measured on a shared EPYC core."""
    orientation: int = 1
    """EXIF orientation, 1 (upright) to 8."""


def orientation_of(exif: bytes) -> int:
    """The EXIF orientation in the first directory of a TIFF block, 1 if there is none or if the block is damaged."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        [start] = struct.unpack_from(order + "I", exif, 4)
        [count] = struct.unpack_from(order + "H", exif, start)
        for at in range(start + 2, start + 2 + 12 * min(count, 512), 12):
            tag, kind, values, value = struct.unpack_from(order + "HHIH", exif, at)
            if tag == _ORIENTATION:
                return value if kind == _SHORT and values == 1 and 1 <= value <= 8 else 1
    except struct.error:  # a broken side note does not spoil the picture
        return 1
    return 1


def refuse_parts(parts: int, kind: str) -> None:
    """Raises `Excessive` for more than `MAX_PARTS`."""
    if parts > MAX_PARTS:
        raise Excessive(f"more than {MAX_PARTS:,} {kind}")
