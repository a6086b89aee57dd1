"""Bytes from a stranger → a `Picture` that is safe to classify and to draw on.

Checks run cheapest first: the first bytes against an allow-list, the size in the header against the limits,
and only then the pixels. Everything here is blocking and belongs on a worker thread; Pillow releases the
interpreter lock while it decodes. No state of Pillow is changed; truncated files stay errors.

A decoded picture is RGB with 8 bits, upright (the EXIF orientation is applied), the first frame of an
animation, white where it was transparent, and without metadata. Colours are taken as sRGB: an embedded
profile is dropped unread.
"""

from __future__ import annotations

import io
import struct
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ExifTags import Base
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from model.preprocess import prepare_image
from service.budget import ByteBudget
from service.errors import EmptyBody, TooLarge, Undecodable, UnsupportedFormat

_READERS: dict[str, type[ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "GIF": GifImageFile,
}
FORMATS = tuple(_READERS)
"""What is accepted. TIFF and BMP are not: many rare compressions, or a decoder in pure Python."""

_SIGNATURES = {"JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n\x1a\n", "GIF": b"GIF8", "WEBP": b"RIFF"}

_FOREIGN = {
    b"BM": "a BMP picture",
    b"II*\0": "a TIFF picture",
    b"MM\0*": "a TIFF picture",
    b"\0\0\x01\0": "an icon (ICO)",
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a ZIP archive",
}
_BRANDS = {b"avif": "an AVIF picture", b"avis": "an AVIF picture", b"mif1": "a HEIF picture"}

SHORT_SIDE_FLOOR = 224
"""The shorter side of a wide picture is not reduced below this: the network reads the centred square."""

PIXEL_BYTES = {"JPEG": 8, "PNG": 16, "WEBP": 25, "GIF": 16}
"""Peak memory per decoded pixel, the most of all pixel types: the file's own pixels and copies on the way to RGB."""

PROGRESSIVE_BYTES = 6
"""What a progressive JPEG takes per pixel of the file, for libjpeg holds all coefficients until the last scan."""

_WHITE = (255, 255, 255, 255)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation → what makes the picture upright. From 5 on width and height change places."""

_DAMAGED = (
    OSError,  # truncated file, or an error inside libjpeg, libwebp or zlib
    SyntaxError,  # broken header, chunk or marker
    ValueError,  # impossible size or offset; compressed text that would grow too large
    EOFError,  # GIF or WebP that ends before its first frame
    struct.error,  # number cut off in the middle
    IndexError,  # data shorter than its own length field
    KeyError,  # field that refers to something absent
    TypeError,  # EXIF value of another type than its tag has
    AttributeError,  # decoder asked for what a broken header never set up
    AssertionError,  # Pillow's own invariants
    OverflowError,  # number larger than the C code takes
    ZeroDivisionError,  # resolution with denominator 0
    RuntimeError,  # Pillow's PNG reader and RecursionError
    Warning,  # only where the process turns warnings into errors
)
"""What Pillow raises on hostile bytes. MemoryError is absent: it tells of this machine, not of the file."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture, what the file held, and nothing else of the file.

    `image` is RGB, upright and without metadata, at the file's resolution or at a whole fraction of it (see
    `reduction`). `width` and `height` are the upright size in the file; `format` is one of `FORMATS`, `mode`
    Pillow's name of the file's pixel type.
    """

    image: Image.Image
    width: int
    height: int
    format: str
    mode: str


def decode(data: bytes, *, max_pixels: int, max_side: int, keep_side: int, budget: ByteBudget | None = None) -> Picture:
    """The picture in `data`, with no more detail than a use at `keep_side` pixels on the longer side needs.

    Waits until the budget has the bytes that decoding takes. Raises `EmptyBody`, `UnsupportedFormat`, `TooLarge`
    (from the header, before any pixel is read) or `Undecodable`.
    """
    found = _accepted_format(data)
    try:
        with _open(data, found) as image:
            _check_size(image.width, image.height, max_pixels, max_side)
            size = _draft(image, found, keep_side)
            with budget.hold(_decoding_bytes(image, found, size)) if budget else nullcontext():
                return _picture(image, found, keep_side, size)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(_too_large(max_pixels, max_side, "a header that announces far more")) from error
    except _DAMAGED as error:
        raise Undecodable(
            f"expected a whole {found} file, found one that does not decode ({_reason(error)}); "
            "it is truncated or damaged: export or download it again"
        ) from error


def network_input(picture: Picture, native_size: int) -> NDArray[np.uint8]:
    """uint8 [3, native, native] for the engine.

    Training's own `prepare_image` makes it, so the two cannot differ: pictures whose sides are below twice
    `keep_side`, every training picture among them, arrive there untouched. A larger photo has been averaged
    over whole blocks of pixels first, which moves the result by about one level of 255.
    """
    return prepare_image(picture.image, native_size)


def _accepted_format(data: bytes) -> str:
    """The name in `FORMATS` that the first bytes announce; no name or type given by the client is asked."""
    if not data:
        raise EmptyBody(f"expected the bytes of a picture ({_listed()}), found none; send the file as the body")
    for name, signature in _SIGNATURES.items():
        if data.startswith(signature) and (name != "WEBP" or data[8:12] == b"WEBP"):
            return name
    raise UnsupportedFormat(
        f"expected a picture as {_listed()}, found {_describe(data)}; convert it to JPEG or PNG and send that"
    )


def _describe(data: bytes) -> str:
    """Words for bytes that are not an accepted picture."""
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12], "a HEIC picture" if data[8:11] == b"hei" else "a video")
    for signature, words in _FOREIGN.items():
        if data.startswith(signature):
            return words
    head = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
    if head.startswith((b"<svg", b"<?xml", b"<!DOCTYPE", b"<html")):
        return "an SVG, XML or HTML text"
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in data[:64]):
        return "text"
    return f"bytes that begin with {data[:8].hex(' ')}"


def _listed() -> str:
    return f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"


def _open(data: bytes, found: str) -> ImageFile:
    """The file with its header read.

    Pillow's reader is called directly, because `Image.open` has a size limit of its own that prints a warning
    or hides the size, and for lack of one format imports the readers of all others. A phone's multi-picture
    JPEG yields its main picture this way.
    """
    return _READERS[found](io.BytesIO(data))


def _check_size(width: int, height: int, max_pixels: int, max_side: int) -> None:
    if width * height > max_pixels or max(width, height) > max_side:
        found = f"{width} x {height}, {width * height:,} pixels"
        raise TooLarge(_too_large(max_pixels, max_side, found))


def _too_large(max_pixels: int, max_side: int, found: str) -> str:
    return (
        f"expected at most {max_pixels:,} pixels and {max_side:,} on a side, found {found}; "
        "reduce the picture and send it again"
    )


def _reason(error: Exception) -> str:
    """Pillow's words where they were written for people."""
    return str(error)[:200] if isinstance(error, OSError) else "its structure is damaged"


def _draft(image: ImageFile, found: str, keep_side: int) -> tuple[int, int]:
    """The size in the file; a JPEG is told to decode itself smaller."""
    width, height = image.size
    if found == "JPEG":
        # libjpeg halves up to three times while it decodes: a third of the time on a phone's photo
        factor = reduction(width, height, keep_side)
        image.draft(None, (width // factor, height // factor))
    return width, height


def _decoding_bytes(image: ImageFile, found: str, size: tuple[int, int]) -> int:
    """Memory that decoding takes at its peak, from the header alone."""
    decoded = image.width * image.height * PIXEL_BYTES[found]
    whole = size[0] * size[1] * PROGRESSIVE_BYTES if image.info.get("progressive") else 0
    return decoded + whole


def _picture(image: ImageFile, found: str, keep_side: int, size: tuple[int, int]) -> Picture:
    width, height = size
    image.load()
    orientation = _orientation(image)
    rest = reduction(*image.size, keep_side)
    kept = _upright(_on_white(_reduced(_true_colour(image), rest)), orientation)
    if kept is image:
        kept = image.copy()  # a plain image: the opened one holds on to the file and its metadata
    kept.info.clear()
    if orientation >= 5:
        width, height = height, width
    return Picture(kept, width, height, found, image.mode)


def reduction(width: int, height: int, keep_side: int) -> int:
    """The whole factor by which a picture is reduced: its longer side stays at `keep_side` or more.

    Nor does its shorter side fall below `SHORT_SIDE_FLOOR`. Whole factors keep the network's square in place,
    and are what libjpeg does for nothing; the drawing is brought to its exact size when it is drawn.
    """
    shorter, longer = sorted((width, height))
    return max(1, min(longer // keep_side, shorter // min(SHORT_SIDE_FLOOR, keep_side)))


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) if there is none or if the block is damaged."""
    try:
        value = image.getexif().get(Base.Orientation, 1)
    except _DAMAGED:  # a broken side note does not spoil the picture
        return 1
    return value if value in _UPRIGHT else 1


def _true_colour(image: Image.Image) -> Image.Image:
    """8-bit RGB, or RGBA where parts may be transparent."""
    if image.mode.startswith("I;16"):
        return _eight_bits(image).convert("RGB")
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 8 bits from 16; Pillow's own conversion would cut off at 255 instead of scaling."""
    levels = np.asarray(image)
    grey = (levels >> 8).astype(np.uint8)  # the high byte, as Pillow reads 16-bit colour
    if (transparent := image.info.get("transparency")) is not None:
        grey[levels == transparent] = 255
    return Image.fromarray(grey)


def _reduced(image: Image.Image, factor: int) -> Image.Image:
    return image if factor == 1 else image.reduce(factor)


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    paper = Image.new("RGBA", image.size, _WHITE)
    paper.alpha_composite(image)
    return paper.convert("RGB")


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
