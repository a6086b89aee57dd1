"""AVIF: the size that it announces; its bytes do not bound its cost."""

from __future__ import annotations

import struct

from model.images.formats.essence import ALWAYS_COSTLY_S, Essence

MAX_SIZES = 1024
"""Most sizes that are read: a grid has one for every tile."""


def announced(data: bytes) -> bool:
    """Whether the first bytes are those of an AVIF picture or sequence."""
    return data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis")


def essence(data: bytes) -> Essence:
    """The file as it is, with the largest size of its items; raises what `DAMAGED` lists if it announces none.

    A frame may be larger than its item says, and is decoded before the two are compared: always costly.
    """
    sizes, at = [], -1
    for _ in range(MAX_SIZES):
        if (at := data.find(b"ispe", at + 1)) < 0:
            break
        sizes.append(struct.unpack_from(">II", data, at + 8))
    if not sizes:
        raise SyntaxError("no size")
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    return Essence(data, width, height, ALWAYS_COSTLY_S)
