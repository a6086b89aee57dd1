"""A picture file, opened by Pillow → an upright RGB picture of 8 bits; training and serving share this file.

Such a picture is the first frame of an animation, white where it was transparent, and turned as its EXIF
orientation says. Colours are taken as sRGB: an embedded profile is dropped unread.

`examined` walks over the file's own structure first (`model.images.formats`): Pillow is given no more than the pixels
need, and what that will cost is known beforehand.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ExifTags import Base
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from model.images.formats import avif, bmp, gif, jpeg, png, webp
from model.images.formats.essence import MAX_MISSING, Essence
from model.images.prepare import prepare_image


class _Format(NamedTuple):
    """How a format is recognised, examined and read."""

    announced: Callable[[bytes], bool]
    essence: Callable[[bytes], Essence]
    reader: type[ImageFile]


_ALL = {
    "JPEG": _Format(lambda data: data.startswith(b"\xff\xd8\xff"), jpeg.essence, JpegImageFile),
    "PNG": _Format(lambda data: data.startswith(b"\x89PNG\r\n\x1a\n"), png.essence, PngImageFile),
    "WEBP": _Format(lambda data: data[:4] == b"RIFF" and data[8:12] == b"WEBP", webp.essence, WebPImageFile),
    "GIF": _Format(lambda data: data.startswith(b"GIF8"), gif.essence, GifImageFile),
    "BMP": _Format(bmp.announced, bmp.essence, BmpImageFile),
    "AVIF": _Format(avif.announced, avif.essence, AvifImageFile),
}
_FORMATS = {name: picture_format for name, picture_format in _ALL.items() if name != "AVIF" or features.check("avif")}
FORMATS = tuple(_FORMATS)
"""What is accepted, as browsers show it; AVIF where Pillow was built with it. TIFF is not: many rare compressions."""

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
    for name, picture_format in _FORMATS.items():
        if picture_format.announced(data):
            return name
    return None


def examined(data: bytes, format_name: str) -> Essence:
    """What the pixels need of the file, and its cost; raises `Excessive`, or another of `DAMAGED`."""
    return _FORMATS[format_name].essence(data)


def listed() -> str:
    """The accepted formats in words."""
    return f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"


def opened(data: bytes, format_name: str) -> ImageFile:
    """The file with its header read; raises one of `DAMAGED`.

    Pillow's reader is called directly, because `Image.open` has a size limit of its own that prints a warning
    or hides the size, and for lack of one format imports the readers of all others. A phone's multi-picture
    JPEG yields its main picture this way.
    """
    return _FORMATS[format_name].reader(io.BytesIO(data))


def network_side(native_size: int) -> int:
    """The `keep_side` with which a picture is decoded for a network of this native size."""
    return max(2 * SHORT_SIDE_FLOOR, NETWORK_SIDES * native_size)


def network_input(data: bytes, format_name: str, native_size: int) -> NDArray[np.uint8]:
    """uint8 [3, native, native] of a file, as the service gives it to its engine; raises one of `DAMAGED`."""
    keep_side = network_side(native_size)
    essence = examined(data, format_name)
    with opened(essence.data, format_name) as image:
        draft(image, keep_side)
        return prepare_image(upright(image, keep_side, essence).image, native_size)


def draft(image: ImageFile, keep_side: int) -> tuple[int, int]:
    """The size in the file; a JPEG is told to decode itself smaller."""
    width, height = image.size
    if image.format == "JPEG":
        # libjpeg halves up to three times while it decodes: a third of the time on a phone's photo
        factor = reduction(width, height, keep_side)
        image.draft(None, (width // factor, height // factor))
    return width, height


class Upright(NamedTuple):
    """A plain RGB picture, how it was turned, and what a viewer should be told."""

    image: Image.Image
    turned: bool
    """Whether width and height changed places."""
    warnings: tuple[str, ...] = ()


def upright(image: ImageFile, keep_side: int, essence: Essence) -> Upright:
    """The opened and drafted picture with no more detail than `keep_side` needs; raises one of `DAMAGED`."""
    loaded, warnings = _loaded(image, essence)
    orientation = essence.orientation
    if image.format == "AVIF":
        orientation = _orientation(image)  # Pillow joins the EXIF block with the format's own turns
    rest = reduction(*loaded.size, keep_side)
    upright_image = _turned(_on_white(_reduced(_true_colour(loaded), rest)), orientation)
    if upright_image is loaded:
        upright_image = loaded.copy()  # a plain image: the opened one holds on to the file and its metadata
    upright_image.info.clear()
    return Upright(upright_image, orientation >= 5, warnings)


def _loaded(image: ImageFile, essence: Essence) -> tuple[Image.Image, tuple[str, ...]]:
    """The pixels, and a warning if a few of them are missing."""
    width = image.width
    if image.format == "PNG" and png.unfinished(essence.data):
        finished = png.Finished(io.BytesIO(essence.data))
        finished.load()
        warning = _cut_off(finished.missing, "blank")
        return png.with_transparency(finished, essence.data), (warning,)
    try:
        image.load()
    except OSError:
        if image.format != "JPEG" or not jpeg.unfinished(essence.data):
            raise
        return _ended(essence, width)
    if image.format == "PNG":
        return png.with_transparency(image, essence.data), ()
    if image.format == "JPEG" and jpeg.unfinished(essence.data):  # libjpeg does not miss the end where all rows came
        return image, (_cut_off(0.0, "grey"),)
    return image, ()


def _ended(essence: Essence, width: int) -> tuple[Image.Image, tuple[str, ...]]:
    shown, missing = jpeg.finished(essence.data, max(1, round(essence.width / width)))
    return shown, (_cut_off(missing, "grey"),)


def _cut_off(missing: float, shown: str) -> str:
    """A warning of a file that ends early, and of the share of the picture that it lacks; `OSError` for too much."""
    if missing > MAX_MISSING:
        raise OSError(f"the file is cut off, {missing:.0%} of the picture is missing")
    if missing:
        return f"the file is cut off; the last {missing:.1%} of the picture is {shown}"
    return "the file is cut off; its end marker or its last details are missing"


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
