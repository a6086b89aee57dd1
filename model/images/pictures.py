"""A picture file, opened by Pillow → an upright RGB picture of 8 bits; training and serving share this file.

Such a picture is the first frame of an animation, white where it was transparent, and turned as its EXIF
orientation says. Colours are taken as sRGB: an embedded profile is dropped unread.
"""

from __future__ import annotations

import io
import struct

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ExifTags import Base
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from model.images.prepare import prepare_image

_READERS: dict[str, type[ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "GIF": GifImageFile,
}
FORMATS = tuple(_READERS)
"""What is accepted. TIFF and BMP are not: many rare compressions, or a decoder in pure Python."""

_SIGNATURES = {"JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n\x1a\n", "GIF": b"GIF8", "WEBP": b"RIFF"}

SHORT_SIDE_FLOOR = 224
"""The shorter side of a wide picture is not reduced below this: the network reads the centred square."""

NETWORK_SIDES = 4
"""A photo is decoded at this many times the model's native size at least, then reduced with antialiasing."""

_WHITE = (255, 255, 255, 255)

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation → what makes the picture upright. From 5 on width and height change places."""

DAMAGED = (
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
"""What Pillow raises on damaged bytes. MemoryError is absent: it tells of this machine, not of the file."""


def format_of(data: bytes) -> str | None:
    """The name in `FORMATS` that the first bytes announce, None if they announce no such picture."""
    for name, signature in _SIGNATURES.items():
        if data.startswith(signature) and (name != "WEBP" or data[8:12] == b"WEBP"):
            return name
    return None


def listed() -> str:
    """The accepted formats in words."""
    return f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"


def opened(data: bytes, found: str) -> ImageFile:
    """The file with its header read; raises one of `DAMAGED`.

    Pillow's reader is called directly, because `Image.open` has a size limit of its own that prints a warning
    or hides the size, and for lack of one format imports the readers of all others. A phone's multi-picture
    JPEG yields its main picture this way.
    """
    return _READERS[found](io.BytesIO(data))


def network_side(native_size: int) -> int:
    """The `keep_side` with which a picture is decoded for a network of this native size."""
    return max(2 * SHORT_SIDE_FLOOR, NETWORK_SIDES * native_size)


def network_input(data: bytes, found: str, native_size: int) -> NDArray[np.uint8]:
    """uint8 [3, native, native] of a whole file, as the service gives it to its engine; raises one of `DAMAGED`."""
    keep_side = network_side(native_size)
    with opened(data, found) as image:
        draft(image, keep_side)
        picture, _ = upright(image, keep_side)
    return prepare_image(picture, native_size)


def draft(image: ImageFile, keep_side: int) -> tuple[int, int]:
    """The size in the file; a JPEG is told to decode itself smaller."""
    width, height = image.size
    if image.format == "JPEG":
        # libjpeg halves up to three times while it decodes: a third of the time on a phone's photo
        factor = reduction(width, height, keep_side)
        image.draft(None, (width // factor, height // factor))
    return width, height


def upright(image: ImageFile, keep_side: int) -> tuple[Image.Image, bool]:
    """The picture with no more detail than `keep_side` needs, and whether width and height changed places."""
    image.load()
    orientation = _orientation(image)
    rest = reduction(*image.size, keep_side)
    kept = _turned(_on_white(_reduced(_true_colour(image), rest)), orientation)
    if kept is image:
        kept = image.copy()  # a plain image: the opened one holds on to the file and its metadata
    kept.info.clear()
    return kept, orientation >= 5


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
    except DAMAGED:  # a broken side note does not spoil the picture
        return 1
    return value if value in UPRIGHT else 1


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


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image
