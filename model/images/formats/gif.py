"""GIF: the first frame with its colours, without comments and application data."""

from __future__ import annotations

import re
import struct

from model.images.formats.essence import Essence, Excessive

MAX_BLOCKS = 100_000
"""Most blocks of side notes before the first frame: 10 MB of them have 41,000 where each is full."""

_PIXEL_S, _BYTE_S = 25e-9, 10e-9
_NEXT = re.compile(rb"[!,;]")
_IMAGE, _END, _CONTROL = 0x2C, 0x3B, 0xF9


def essence(data: bytes) -> Essence:
    """Header, last graphic control and everything from the first frame on; raises `Excessive` or `DAMAGED`."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = head = 13 + _colours(flags)
    control, blocks = b"", 0
    while True:
        if (mark := _NEXT.search(data, at)) is None or data[mark.start()] == _END:
            raise EOFError("the file ends before its first frame")
        at = mark.start()
        if data[at] == _IMAGE:
            break
        begin, at = at, at + 2
        while size := data[at]:
            at += size + 1
            blocks += 1
            if blocks > MAX_BLOCKS:
                raise Excessive(f"more than {MAX_BLOCKS:,} blocks of comments")
        at += 1
        if data[begin + 1] == _CONTROL and at - begin == 8:
            control = data[begin:at]
    left, top, wide, high = struct.unpack_from("<HHHH", data, at + 1)
    if wide and high:
        width, height = max(width, left + wide), max(height, top + high)
    else:
        width, height = wide, high  # no pixels, however large the screen is
    cost = width * height * _PIXEL_S + len(data) * _BYTE_S
    whole = data if at == head + len(control) else data[:head] + control + data[at:]
    return Essence(whole, width, height, cost)


def _colours(flags: int) -> int:
    """Bytes of a colour table."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0
