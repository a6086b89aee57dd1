"""Hostile pictures, seeded: real files with damage that a bug, a bad link or an attacker would do to them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from random import Random
from typing import NamedTuple

from PIL import Image

from tests.load.sample_pictures import photos, small_pngs

PNG_START = b"\x89PNG\r\n\x1a\n"
HUGE = (0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
"""Sizes at which integers overflow or limits begin."""


class Hostile(NamedTuple):
    """One file, and how it came about."""

    how: str
    data: bytes


Damage = Callable[[bytes, Random], bytes]


def corpus(count: int, seed: int = 0) -> Iterator[Hostile]:
    """So many files, the same for the same seed; every kind of damage comes up about equally often."""
    random = Random(seed)
    ways: Sequence[tuple[str, Damage]] = tuple(DAMAGES.items())
    for number in range(count):
        name, damage = ways[number % len(ways)]
        seedling, data = random.choice(seedlings())
        yield Hostile(f"{number}: {name} of {seedling}, seed {seed}", damage(data, random))


@lru_cache(maxsize=1)
def seedlings() -> tuple[tuple[str, bytes], ...]:
    """Sound files of every format that is taken, and some that are not."""
    found = [(f"photo {number}", data) for number, data in enumerate(photos())]
    found += [(f"small PNG {number}", data) for number, data in enumerate(small_pngs(3))]
    image = Image.open(io.BytesIO(small_pngs(1, side=96)[0])).convert("RGB")
    for format in ("PNG", "WEBP", "GIF", "JPEG", "BMP", "TIFF"):
        found.append((format, saved(image, format)))
    for mode in ("1", "L", "P", "RGBA", "LA", "I;16"):
        found.append((f"PNG {mode}", saved(image.convert("L" if mode == "I;16" else mode).convert(mode), "PNG")))
    found.append(("animated GIF", saved(image, "GIF", save_all=True, append_images=[image.rotate(9)] * 4)))
    found.append(("animated WEBP", saved(image, "WEBP", save_all=True, append_images=[image.rotate(9)] * 4)))
    found.append(("animated PNG", saved(image, "PNG", save_all=True, append_images=[image.rotate(9)] * 4)))
    found.append(("progressive JPEG", saved(image, "JPEG", progressive=True)))
    found.append(("CMYK JPEG", saved(image.convert("CMYK"), "JPEG")))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "turned"
    found.append(("JPEG with EXIF", saved(image, "JPEG", exif=exif)))
    return tuple(found)


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    """The picture as a file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes, length: int | None = None) -> bytes:
    """A PNG chunk with its checksum; `length` may lie."""
    announced = len(data) if length is None else length
    return struct.pack(">I", announced) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _flipped_bits(data: bytes, random: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 4, 32, 256))):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _flipped_head(data: bytes, random: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 3, 9))):
        changed[random.randrange(4, min(64, len(changed)))] = random.randrange(256)
    return bytes(changed)


def _cut(data: bytes, random: Random) -> bytes:
    return data[: random.randrange(len(data))]


def _without_a_piece(data: bytes, random: Random) -> bytes:
    start = random.randrange(len(data))
    return data[:start] + data[start + random.randrange(1, 500) :]


def _repeated_piece(data: bytes, random: Random) -> bytes:
    start = random.randrange(len(data))
    return data[:start] + data[start : start + 200] * random.randrange(2, 50) + data[start:]


def _noise_inside(data: bytes, random: Random) -> bytes:
    start = random.randrange(len(data))
    return data[:start] + random.randbytes(random.randrange(1, 2000)) + data[start:]


def _noise_only(data: bytes, random: Random) -> bytes:
    return data[: random.choice((0, 3, 8, 16))] + random.randbytes(random.randrange(0, 5000))


def _two_files(data: bytes, random: Random) -> bytes:
    _, other = random.choice(seedlings())
    return data + other if random.random() < 0.5 else data[: random.randrange(8, len(data))] + other


def _wrong_signature(data: bytes, random: Random) -> bytes:
    start = random.choice((b"\xff\xd8\xff", PNG_START, b"GIF89a", b"RIFF\0\0\0\0WEBP", b"%PDF-1.7", b"PK\x03\x04", b""))
    return start + data[len(start) :]


def _chunk_lengths(data: bytes, random: Random) -> bytes:
    """A length of a PNG chunk, a JPEG segment or a RIFF block that lies."""
    changed = bytearray(data)
    marks = [at for at in range(len(data) - 8) if data[at : at + 4] in (b"IDAT", b"IHDR", b"PLTE", b"VP8 ", b"VP8X")]
    marks += [at for at in range(len(data) - 8) if data[at] == 0xFF and data[at + 1] in (0xC0, 0xC2, 0xC4, 0xDB, 0xE1)]
    if not marks:
        return _flipped_head(data, random)
    at = random.choice(marks)
    at = max(0, at - 4) if data[at : at + 2] == b"ID" or data[at : at + 2] == b"IH" else at + 2
    changed[at : at + 4] = struct.pack(">I", random.choice(HUGE))
    return bytes(changed)


def _huge_png(data: bytes, random: Random) -> bytes:
    """A small file that says it is enormous."""
    width, height = (random.choice((1, 16_384, 65_535, 100_000, 0x7FFFFFFF)) for _ in "wh")
    depth, colour = random.choice(((8, 2), (16, 6), (1, 0), (8, 3), (99, 99)))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, random.choice((0, 1)))
    return PNG_START + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def _huge_gif_or_webp(data: bytes, random: Random) -> bytes:
    side = random.choice((0, 65_535, 16_384))
    if random.random() < 0.5:
        return b"GIF89a" + struct.pack("<HHBBB", side, side, 0xF7, 0, 0) + random.randbytes(800)
    block = b"VP8X" + struct.pack("<IB3x", 10, 0x12) + b"\xff\xff\xff\xff\xff\xff" + random.randbytes(300)
    return b"RIFF" + struct.pack("<I", len(block) + 4) + b"WEBP" + block


def _bomb(data: bytes, random: Random) -> bytes:
    """Pixels that pack a thousandfold: just under the limit on pixels, or over it."""
    side = random.choice((2000, 2000, 2000, 4900, 5200, 16_000))
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return PNG_START + chunk(b"IHDR", header) + chunk(b"IDAT", _zeros(side * (side // 8 + 1))) + chunk(b"IEND", b"")


@lru_cache(maxsize=16)
def _zeros(count: int) -> bytes:
    """So many zeros, packed."""
    return zlib.compress(bytes(count), 9)


def _text_bomb(data: bytes, random: Random) -> bytes:
    """Comments and a colour profile that unpack to megabytes."""
    kind, head = random.choice(((b"zTXt", b"k\0\0"), (b"iTXt", b"k\0\1\0\0\0"), (b"iCCP", b"p\0\0")))
    packed = head + _zeros(random.choice((1, 8, 40)) << 20)
    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(8 * 25)))
    times = random.choice((1, 3))
    return PNG_START + chunk(b"IHDR", header) + chunk(kind, packed) * times + pixels + chunk(b"IEND", b"")


def _animation(data: bytes, random: Random) -> bytes:
    """An animation of thousands of frames that are not there, or all alike."""
    if random.random() < 0.5:
        frame = b"\x21\xf9\x04\0\0\0\0\0\x2c\0\0\0\0\x10\0\x10\0\0\x02\x02\x44\x01\0"
        start = b"GIF89a\x10\0\x10\0\x80\0\0\0\0\0\xff\xff\xff"
        return start + frame * random.choice((2, 3000)) + b"\x3b"
    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    control = chunk(b"acTL", struct.pack(">II", random.choice(HUGE), 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(8 * 25)))
    return PNG_START + chunk(b"IHDR", header) + control + pixels + chunk(b"IEND", b"")


def _damaged_exif(data: bytes, random: Random) -> bytes:
    """A JPEG whose side notes point anywhere."""
    block = bytearray(b"Exif\0\0" + random.choice((b"II*\0", b"MM\0*", b"XX\0\0")) + struct.pack("<I", 8))
    entries = random.choice((0, 1, 200, 65_535))
    block += struct.pack("<H", entries)
    for _ in range(min(entries, 200)):
        tag, kind = random.choice((0x0112, 0x8769, 0x8825, 0x010E)), random.randrange(16)
        block += struct.pack("<HHII", tag, kind, random.choice(HUGE), random.choice(HUGE))
    photo = next(file for name, file in seedlings() if name == "JPEG")
    return photo[:2] + b"\xff\xe1" + struct.pack(">H", min(65_535, len(block) + 2)) + bytes(block) + photo[2:]


DAMAGES: dict[str, Damage] = {
    "flipped bits": _flipped_bits,
    "flipped head": _flipped_head,
    "cut": _cut,
    "missing piece": _without_a_piece,
    "repeated piece": _repeated_piece,
    "noise inside": _noise_inside,
    "noise": _noise_only,
    "two files": _two_files,
    "wrong signature": _wrong_signature,
    "lying length": _chunk_lengths,
    "huge PNG": _huge_png,
    "huge GIF or WEBP": _huge_gif_or_webp,
    "bomb of pixels": _bomb,
    "bomb of text": _text_bomb,
    "animation": _animation,
    "damaged EXIF": _damaged_exif,
}
