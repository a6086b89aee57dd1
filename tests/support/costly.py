"""Small files that once took long: one for every way in which a format's parts cost more than its pixels."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

from PIL import Image

from tests.support.hostile import PNG_START, chunk, saved

MIB = 1 << 20

MOST = 10 * MIB - 4096
"""What a file is filled up to: with all its own parts it is still within the service's limit of 10 MiB."""


def many_scans(side: int, scans: int, **options: object) -> bytes:
    """A progressive JPEG whose last scan comes again and again: each is a pass over all blocks."""
    jpeg = saved(Image.new("L", (side, side), 128), "JPEG", progressive=True, optimize=True, **options)
    last = jpeg.rindex(b"\xff\xda")
    return jpeg[:-2] + jpeg[last:-2] * scans + b"\xff\xd9"


def segments(marker: int, body: bytes, total: int) -> bytes:
    """A JPEG with so many bytes of one kind of segment before its picture."""
    jpeg = saved(Image.new("RGB", (32, 32), "red"), "JPEG")
    segment = struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body
    return jpeg[:2] + segment * (total // len(segment)) + jpeg[2:]


def fill_bytes(total: int) -> bytes:
    """A JPEG with a marker that is filled up."""
    jpeg = saved(Image.new("RGB", (32, 32), "red"), "JPEG")
    return jpeg[:2] + b"\xff" * total + jpeg[2:]


def chunks(kind: bytes, body: bytes, total: int) -> bytes:
    """A PNG with so many bytes of one kind of chunk before its pixels."""
    one = chunk(kind, body)
    plain = saved(Image.new("RGB", (8, 8), "red"), "PNG")
    return plain[:33] + one * (total // len(one)) + plain[33:]


def exif_of_overlaps(total: int) -> bytes:
    """A PNG whose EXIF block has thousands of entries, each of which is all of the block."""
    count = 4000
    entries = b"".join(struct.pack(">HHII", 0x9000 + tag, 1, total - 100, 8) for tag in range(count))
    body = b"MM\0*\0\0\0\x08" + struct.pack(">H", count) + entries
    return chunks(b"eXIf", body.ljust(total, b"\0"), total + 12)


def comments(total: int, block: int) -> bytes:
    """A GIF with a comment of so many bytes, in blocks of one size."""
    gif = saved(Image.new("P", (8, 8)), "GIF")
    start = 13 + (3 << ((gif[10] & 7) + 1)) * (gif[10] >> 7)
    comment = b"\x21\xfe" + (bytes([block]) + b"c" * block) * (total // (block + 1)) + b"\0"
    return gif[:start] + comment + gif[start:]


def junk(total: int) -> bytes:
    """A GIF with bytes between its blocks that are none."""
    gif = saved(Image.new("P", (8, 8)), "GIF")
    start = 13 + (3 << ((gif[10] & 7) + 1)) * (gif[10] >> 7)
    return gif[:start] + b"x" * total + gif[start:]


def riff(kind: bytes, total: int) -> bytes:
    """A WebP with so many bytes of empty chunks."""
    exif = Image.Exif()
    exif[0x0112] = 6
    webp = saved(Image.new("RGB", (8, 8), "red"), "WEBP", exif=exif)
    body = webp[8:] + (kind + bytes(4)) * (total // 8)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def run_lengths(total: int) -> bytes:
    """A BMP of run lengths, each of one pixel."""
    side = 4900
    palette = bytes(1024)
    info = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, 0, 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 1024 + total, 0, 0, 54 + 1024) + info + palette + b"\1\0" * (total // 2)


def paeth(side: int) -> bytes:
    """The slowest filter on the widest pixels that PNG has."""
    packer = zlib.compressobj(1)
    row = b"\4" + bytes(side * 8)
    packed = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 16, 6, 0, 0, 0)
    return PNG_START + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def larger_than_it_says() -> bytes:
    """An AVIF whose item is announced far smaller than its frame."""
    avif = saved(Image.new("RGB", (4096, 4096), "red"), "AVIF", speed=10)
    return avif.replace(
        b"ispe" + bytes(4) + struct.pack(">II", 4096, 4096), b"ispe" + bytes(4) + struct.pack(">II", 8, 8)
    )


COSTLY: dict[str, Callable[[], bytes]] = {
    "scans over many blocks": lambda: many_scans(4900, 2600),
    "scans over few blocks": lambda: many_scans(64, 200_000),
    "EXIF segments": lambda: segments(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0", MOST),
    "profile segments": lambda: segments(0xE2, b"ICC_PROFILE\0\1\1", MOST),
    "long profile segments": lambda: segments(0xE2, b"ICC_PROFILE\0\1\xff" + bytes(60_000), MOST),
    "Photoshop segments": lambda: segments(0xED, b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\0" * 5000, MOST),
    "empty comments": lambda: segments(0xFE, b"", MOST),
    "tables": lambda: segments(0xDB, (b"\0" + bytes(range(1, 65))) * 1000, MOST),
    "fill bytes": lambda: fill_bytes(MOST),
    "PNG text": lambda: chunks(b"tEXt", b"a\0b", MOST),
    "PNG empty data": lambda: chunks(b"IDAT", b"", MOST),
    "PNG palettes": lambda: chunks(b"PLTE", bytes(768), MOST),
    "PNG profiles": lambda: chunks(b"iCCP", b"p\0\0" + zlib.compress(bytes(1_000_000), 9), MOST),
    "PNG texts that unpack": lambda: chunks(b"zTXt", b"p\0\0" + zlib.compress(bytes(1_000_000), 9), MOST),
    "PNG EXIF": lambda: exif_of_overlaps(9 * MIB),
    "PNG of the slowest kind": lambda: paeth(5000),
    "GIF comments": lambda: comments(MOST, 255),
    "GIF short comments": lambda: comments(MOST, 1),
    "GIF junk": lambda: junk(MOST),
    "WebP chunks": lambda: riff(b"JUNK", MOST),
    "BMP runs": lambda: run_lengths(MOST),
    "AVIF": larger_than_it_says,
}
"""What each is made of, and a maker of the file."""


def png(
    width: int, height: int, depth: int, colour: int, rows: bytes, before: bytes = b"", interlace: int = 0
) -> bytes:
    """A PNG of packed rows, each behind its filter byte, and of chunks before them."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    return PNG_START + chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def noisy_jpeg(width: int = 320, height: int = 240, **options: object) -> bytes:
    """A JPEG whose bytes are spread evenly over its rows."""
    noise = Image.effect_noise((width, height), 80)
    slope = Image.linear_gradient("L").resize((width, height))
    out = io.BytesIO()
    Image.merge("RGB", [slope, noise, noise.transpose(Image.Transpose.ROTATE_180)]).save(out, "JPEG", **options)
    return out.getvalue()
