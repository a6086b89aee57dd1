"""WebP: the chunks of the first frame."""

from __future__ import annotations

import struct

from model.images.formats.essence import MAX_PARTS, Essence, orientation_of

_PIXEL_S, _BYTE_S = 80e-9, 150e-9
"""Of the animation decoder, which Pillow uses for every file; the tables of lossless files cost by their bytes."""

_HEADER = struct.Struct("<4sI")
_NOTES = 0x20 | 0x08 | 0x04
"""Flags of a colour profile, EXIF and XMP."""


def essence(data: bytes) -> Essence:
    """The file with its first frame and without side notes; raises what `DAMAGED` lists for a broken header."""
    kind = data[12:16]
    width, height = _size(data, kind)
    cost = width * height * _PIXEL_S + len(data) * _BYTE_S
    if kind != b"VP8X":
        return Essence(data, width, height, cost)
    chunks, exif = _chunks(data)
    return Essence(_joined(data, chunks), width, height, cost, orientation_of(exif))


def _size(data: bytes, kind: bytes) -> tuple[int, int]:
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        [bits] = struct.unpack_from("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise SyntaxError("no picture is the first chunk")


def _chunks(data: bytes) -> tuple[list[bytes] | None, bytes]:
    """Chunks of the first frame after the header's, None where one is cut off; and the EXIF block."""
    chunks: list[bytes] = []
    exif, at, seen = b"", 30, set[bytes]()
    for _ in range(MAX_PARTS):
        if at + 8 > len(data):
            break
        kind, size = _HEADER.unpack_from(data, at)
        end = at + 8 + size + (size & 1)
        if kind in (b"ANIM", b"ANMF", b"ALPH", b"VP8 ", b"VP8L") and kind not in seen:
            if at + 8 + size > len(data):
                return None, exif
            chunks.append(data[at:end])
            seen.add(kind)
        elif kind == b"EXIF" and not exif:
            exif = data[at + 8 : at + 8 + size]
        at = end
    return chunks, exif


def _joined(data: bytes, chunks: list[bytes] | None) -> bytes:
    if chunks is None:
        return data  # libwebp says what is missing
    body = b"WEBP" + data[12:20] + bytes([data[20] & ~_NOTES]) + data[21:30] + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body
