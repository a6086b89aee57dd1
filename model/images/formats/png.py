"""PNG: chunks that pixels need, checksums of side chunks, files that end early, and unusual transparent colours."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngImageFile

from model.images.formats.essence import MAX_PARTS, Essence, orientation_of, refuse_parts

_HEADER, _SIZE = struct.Struct(">I4s"), struct.Struct(">IIBB")
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_BYTE_S, _SAMPLE_BYTE_S, _PIXEL_S, _CHUNK_S = 10e-9, 6e-9, 12e-9, 4e-6
_ANCILLARY = 0x20
_START = 8
_GREY, _COLOUR = 0, 2
_END = b"\0\0\0\0IEND\xaeB`\x82"
_PASSES = ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2))
"""Of an interlaced file: first column, step of columns, first row, step of rows."""
_PIECE = 1 << 16


def essence(data: bytes) -> Essence:
    """The file with its critical chunks and its transparent colour; raises `Excessive` or what `DAMAGED` lists.

    Side chunks are left out unread, whatever their checksums; a transparent colour with a wrong one is, too.
    """
    width, height, depth, colour = _SIZE.unpack_from(data, 16)
    if data[12:16] != b"IHDR":
        raise SyntaxError("the header is not the first chunk")
    stretches, exif, chunks = _chunks(data)
    sample_bytes = width * height * _CHANNELS.get(colour, 4) * depth / 8
    cost = len(data) * _BYTE_S + sample_bytes * _SAMPLE_BYTE_S + width * height * _PIXEL_S + chunks * _CHUNK_S
    if depth == 16 and colour == _COLOUR:
        cost *= 2  # a transparent colour takes a second pass
    if unfinished(data):
        cost *= 2  # what is there is unpacked to be counted, too
    if stretches == [(_START, len(data))]:
        whole = data
    else:
        whole = b"".join([data[:_START], *(data[start:end] for start, end in stretches)])
    return Essence(whole, width, height, cost, orientation_of(exif) if exif else 1)


def _chunks(data: bytes) -> tuple[list[tuple[int, int]], bytes, int]:  # noqa: C901 - one fast pass
    """Stretches of chunks to keep, the EXIF block, and the number of chunks."""
    stretches, begin, at, exif, chunks = [], _START, _START, b"", 0
    while at + 12 <= len(data):
        length, kind = _HEADER.unpack_from(data, at)
        end, chunks = at + 12 + length, chunks + 1
        if chunks > MAX_PARTS:
            refuse_parts(chunks, "chunks")
        if end > len(data):
            break  # cut off
        if kind[0] & _ANCILLARY:
            sound = kind in (b"tRNS", b"eXIf") and _sound(data, at, end)
            if kind == b"eXIf" and sound:
                exif = data[at + 8 : end - 4]
            if kind != b"tRNS" or not sound:
                if at > begin:
                    stretches.append((begin, at))
                begin = end
        elif kind == b"IHDR" and at != _START:
            raise SyntaxError("two headers")
        at = end
        if kind == b"IEND":
            break
    if begin < len(data):
        stretches.append((begin, len(data)))
    return stretches, exif, chunks


def _sound(data: bytes, at: int, end: int) -> bool:
    return zlib.crc32(data[at + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")


def unfinished(data: bytes) -> bool:
    """Whether the file ends before its end chunk does."""
    if data.endswith(_END):
        return False
    return all(kind != b"IEND" or at + len(_END) > len(data) for at, _, kind in _parts(data))


class Finished(PngImageFile):
    """A file that ends early, with zeros in the place of the pixels that are missing.

    Pillow's own switch for truncated files counts for the whole process, and does not tell how much is missing. So the
    decoder is given what can be unpacked, packed again and filled up. Raises `OSError` where it cannot be unpacked.
    """

    def __init__(self, file: io.BytesIO) -> None:
        self.missing = 0.0
        """Share of the pixels' bytes that are missing, once they are loaded."""
        self._pieces = filter(None, self._filled_up(file.getvalue()))
        super().__init__(file)

    def load_read(self, read_bytes: int) -> bytes:
        """The next piece, whatever its size; what Pillow asks for while it decodes."""
        return next(self._pieces, b"")

    def load_end(self) -> None:
        """Nothing is read behind the pixels."""

    def _filled_up(self, data: bytes) -> Iterator[bytes]:
        left = total = _unpacked_bytes(data)
        pack = zlib.compressobj(0)
        for piece in _unpacked(data, total):
            left -= len(piece)
            yield pack.compress(piece)
        self.missing = left / total
        for start in range(0, left, _PIECE):
            yield pack.compress(bytes(min(_PIECE, left - start)))
        yield pack.flush()


def _parts(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Begin, length and kind of every chunk whose header is there; the last may be cut off."""
    at = _START
    while at + _HEADER.size <= len(data):
        length, kind = _HEADER.unpack_from(data, at)
        yield at, length, kind
        at += 12 + length


def _unpacked(data: bytes, most: int) -> Iterator[bytes]:
    """The rows with their filters, in pieces, as far as they came; `most` bytes at most."""
    unpack = zlib.decompressobj()
    try:
        for at, length, kind in _parts(data):
            packed = data[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
            while packed and most:
                piece = unpack.decompress(packed, min(_PIECE, most))
                packed = unpack.unconsumed_tail
                most -= len(piece)
                yield piece
        yield unpack.flush()[:most]
    except zlib.error as error:
        raise OSError("the file is cut off, and what is there does not unpack") from error


def _unpacked_bytes(data: bytes) -> int:
    """Bytes of all rows, each with its filter."""
    width, height, depth, colour = _SIZE.unpack_from(data, 16)
    passes = _PASSES if data[28] else ((0, 1, 0, 1),)
    bits, total = _CHANNELS.get(colour, 4) * depth, 0
    for left, across, top, down in passes:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0:
            total += max(0, rows) * (1 + -(-columns * bits // 8))
    return total


def with_transparency(image: ImageFile, data: bytes) -> Image.Image:
    """The loaded picture with its transparent colour in Pillow's 8 bits, or as RGBA where those would not be exact."""
    depth, colour = data[24], data[25]
    transparent = image.info.get("transparency")
    if transparent is None or colour not in (_GREY, _COLOUR):
        return image
    if colour == _COLOUR:
        if depth == 16:
            return _cut_out(image, data, transparent)
        image.info["transparency"] = tuple(value & 255 for value in transparent)
    elif depth in (2, 4, 8):  # Pillow maps 1 bit itself, and 16 bits of grey keep all their bits
        most = (1 << depth) - 1
        image.info["transparency"] = (transparent & most) * 255 // most
    return image


def _cut_out(image: ImageFile, data: bytes, transparent: tuple[int, int, int]) -> Image.Image:
    """RGBA of 16-bit colour: Pillow keeps the high bytes, so the low ones are read from the file once more."""
    again = type(image)(io.BytesIO(data))
    again.tile = [tile._replace(args="RGB;16L") for tile in again.tile]  # the other byte order's high byte
    again.load()
    high, low = np.asarray(image), np.asarray(again)
    equal = np.ones(high.shape[:2], bool)
    for channel, value in enumerate(transparent):
        equal &= (high[..., channel] == value >> 8) & (low[..., channel] == value & 255)
    cut = image.copy()
    cut.info.pop("transparency", None)
    cut.putalpha(Image.fromarray(np.where(equal, np.uint8(0), np.uint8(255))))
    return cut
