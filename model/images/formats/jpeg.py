"""JPEG: the segments that libjpeg needs, and how often it passes over the blocks."""

from __future__ import annotations

import io
import re
import struct

from PIL import Image, ImageChops
from PIL.JpegImagePlugin import JpegImageFile

from model.images.formats.essence import MAX_PARTS, Essence, Excessive, orientation_of, refuse_parts

MAX_PASSES = 40_000_000
"""Most blocks over all scans, 1.5 s of a core; a progressive 50-megapixel photo in full colour has about 15 million."""

MAX_HEADER_BYTES = 1 << 18
"""Most bytes of tables before the first scan: Pillow takes quantisation tables apart in Python."""

_BYTE_S, _PIXEL_S, _SCAN_S = 25e-9, 6e-9, 50e-6
_PASS_S, _ARITHMETIC_PASS_S = 40e-9, 600e-9

_MARKER = re.compile(rb"\xff[\x01-\xfe]")
_AFTER_SCAN = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ARITHMETIC = range(0xC9, 0xD0)
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_SIZE, _PAIR = struct.Struct(">HH"), struct.Struct("BB")
_BARE = frozenset({0x01, *range(0xD0, 0xD8)})
_SOI, _EOI, _SOS, _EXIF = 0xD8, 0xD9, 0xDA, 0xE1
_NEEDED_NOTES = {0xE0: b"JFIF", 0xEE: b"Adobe"}
"""APP segments that say which colours the components are."""

END = b"\xff\xd9"
_GARBAGE = b"\x00" + bytes(range(7, 247, 3)) * 40
"""Entropy-coded bits that no picture goes on with; without a marker among them."""


class _Frame:
    """What the frame header tells: the kind of coding, the size and the components."""

    __slots__ = ("_body", "height", "marker", "width")

    def __init__(self, marker: int, body: bytes) -> None:
        self.marker = marker
        self.height, self.width = _SIZE.unpack_from(body, 1)
        self._body = body

    def _factors(self) -> list[tuple[int, int, int]]:
        """Name, horizontal and vertical sampling of each component."""
        parts = [_PAIR.unpack_from(self._body, 6 + 3 * part) for part in range(self._body[5])]
        return [(name, max(1, sampling >> 4), max(1, sampling & 15)) for name, sampling in parts]

    @property
    def unit_height(self) -> int:
        """Rows of pixels that are coded together."""
        return 8 * max((v for _, _, v in self._factors()), default=1)

    @property
    def blocks(self) -> dict[int, int]:
        """Blocks of each component."""
        factors = self._factors()
        unit_width = 8 * max((h for _, h, _ in factors), default=1)
        units = -(-self.width // unit_width) * -(-self.height // self.unit_height)
        counts: dict[int, int] = {}
        for name, h, v in factors:
            counts[name] = counts.get(name, 0) + units * h * v
        return counts


def essence(data: bytes) -> Essence:
    """The file without side notes; raises `Excessive`, or what `DAMAGED` lists for a broken header."""
    stretches, frame, exif, start, parts = _header(data)
    cost = len(data) * _BYTE_S + frame.width * frame.height * _PIXEL_S
    if frame.marker in _PROGRESSIVE or data.count(b"\xff\xda", start) > 1:
        passes, scans = _passes(data, start, frame, parts)
        cost += passes * (_ARITHMETIC_PASS_S if frame.marker in _ARITHMETIC else _PASS_S) + scans * _SCAN_S
    elif frame.marker in _ARITHMETIC:
        cost += sum(frame.blocks.values()) * _ARITHMETIC_PASS_S
    whole = data
    if len(stretches) > 1:
        whole = b"".join([*(data[begin:end] for begin, end in stretches), data[start:]])
    return Essence(whole, frame.width, frame.height, cost, orientation_of(exif) if exif else 1)


def _header(data: bytes) -> tuple[list[tuple[int, int]], _Frame, bytes, int, int]:  # noqa: C901 - one fast pass
    """Stretches to keep, the frame, the EXIF block, where the first scan starts, and how many segments there were.

    The last stretch ends where the first scan starts, so a single one means that nothing is left out.
    """
    stretches, begin, at, parts, skipped = [], 0, 2, 0, 0
    frame, exif = None, b""
    while True:
        parts += 1
        if parts > MAX_PARTS:
            refuse_parts(parts, "segments")
        code = data[at + 1]
        if data[at] != 0xFF or not 0 < code < 0xFF:  # bytes that fill, or junk: libjpeg passes over them, too
            if (marker := _MARKER.search(data, at)) is None:
                raise OSError("the file ends before its first scan")
            stretches.append((begin, at))
            skipped += marker.start() - at
            begin = at = marker.start()
            code = data[at + 1]
        if code == _SOS:
            break
        end = at + 2 if code in _BARE else at + 2 + _length(data, at)
        if code in _FRAMES:
            if frame is not None:
                raise SyntaxError("two frame headers")
            frame = _Frame(code, data[at + 4 : end])
        elif code >= 0xE0:
            if code not in _NEEDED_NOTES or not data.startswith(_NEEDED_NOTES[code], at + 4):
                if code == _EXIF and not exif and data.startswith(b"Exif\0\0", at + 4):
                    exif = data[at + 4 : end]
                stretches.append((begin, at))
                skipped += end - at
                begin = end
        elif code in (_SOI, _EOI):
            raise SyntaxError("a second start or an end before the first scan")
        at = end
    if frame is None:
        raise SyntaxError("no frame header before the first scan")
    if at - skipped > MAX_HEADER_BYTES:
        raise Excessive(f"{at - skipped:,} bytes of tables")
    stretches.append((begin, at))
    return stretches, frame, exif, at, parts


def _length(data: bytes, at: int) -> int:
    length = data[at + 2] << 8 | data[at + 3]
    if length < 2 or at + 2 + length > len(data):
        raise OSError("the file ends inside its header")
    return length


def _passes(data: bytes, start: int, frame: _Frame, parts: int) -> tuple[int, int]:
    """Blocks that all scans pass over, and the number of scans; raises `Excessive`."""
    passes, scans, blocks = 0, 0, frame.blocks
    for code, body in _segments_from(data, start, parts):
        if code == _SOS:
            scans += 1
            passes += sum(blocks.get(body[1 + 2 * part], 0) for part in range(min(body[0], len(body) // 2)))
    if passes > MAX_PASSES:
        raise Excessive(f"{scans:,} scans over {sum(blocks.values()):,} blocks")
    return passes, scans


def _segments_from(data: bytes, start: int, parts: int = 0) -> list[tuple[int, bytes]]:
    """Marker and body of every segment from the first scan to the end marker or the end of the file."""
    segments: list[tuple[int, bytes]] = []
    at = start
    while (mark := _AFTER_SCAN.search(data, at)) is not None and data[mark.start() + 1] != _EOI:
        at = mark.start()
        refuse_parts(parts + len(segments), "segments")
        if at + 4 > len(data):
            break
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        segments.append((data[at + 1], data[at + 4 : min(end, at + 260)] or b"\0"))
        at = max(end, at + 2)
    return segments


def unfinished(data: bytes) -> bool:
    """Whether the end marker is missing after the last scan began."""
    return not data.endswith(END) and data.rfind(END) < data.rfind(b"\xff\xda")


def finished(data: bytes, scale: int) -> tuple[Image.Image, float]:
    """The picture of an unfinished file at 1/`scale` of its size, its missing tail grey, and the share that is missing.

    Pillow's own switch for truncated files counts for the whole process, and does not tell how much is missing. So
    the file is ended here: once by an end marker, and once by garbage. What differs between the two pictures was
    decided by what we added, so it never came. A progressive file passes over the picture many times: the details
    that its last scan adds may be missing in part; raises `OSError` if an earlier scan is.
    """
    _, frame, _, start, _ = _header(data)
    if frame.marker in _PROGRESSIVE:
        if not _all_scans_began(data, start, frame):
            raise OSError("the file is cut off before its last scan, much of the picture is missing")
        return _loaded(data + END, scale), 0.0
    shown, other = _loaded(data + END, scale), _loaded(data + _GARBAGE + END, scale)
    return shown, _missing(shown, other, frame)


def _loaded(data: bytes, scale: int) -> Image.Image:
    image = JpegImageFile(io.BytesIO(data))
    image.draft(None, (max(1, image.width // scale), max(1, image.height // scale)))
    image.load()
    return image


def _missing(shown: Image.Image, other: Image.Image, frame: _Frame) -> float:
    """Share of the picture, in reading order, behind the first block that differs."""
    difference = ImageChops.difference(shown, other)
    if (box := difference.getbbox()) is None:
        return 0.0
    width, height = shown.size
    block = max(1, round(frame.unit_height * height / frame.height))
    top = -(-box[1] // block) * block if box[1] % block > block - 3 else box[1] // block * block
    bottom = min(height, top + block)
    band = difference.crop((0, top, width, bottom)).getbbox()
    left = band[0] if band else 0
    came: int = width * top + left * (bottom - top)
    return 1 - came / (width * height)


def _all_scans_began(data: bytes, start: int, frame: _Frame) -> bool:
    """Whether every coefficient of every component has a scan that brings its last bit."""
    exact: dict[int, set[int]] = {name: set() for name in frame.blocks}
    for code, body in _segments_from(data, start):
        count = body[0]
        if code == _SOS and len(body) >= 4 + 2 * count:
            first, last, bits = body[1 + 2 * count : 4 + 2 * count]
            for part in range(count):
                if bits & 15 == 0:
                    exact.setdefault(body[1 + 2 * part], set()).update(range(first, last + 1))
    return all(bands >= set(range(64)) for bands in exact.values())
