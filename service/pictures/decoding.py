"""Bytes from a stranger → a `Picture` that is safe to classify and to draw on.

Checks run cheapest first: the first bytes against an allow-list, the file's structure and the size in its header
against the limits (bytes, pixels and sides are settings; scans and parts of a file are bounded per format in
`model.images.formats`), and only then the pixels. Everything here is blocking and belongs on a worker thread, but for
pictures of `QUICK_S`; Pillow releases the interpreter lock while it decodes. No state of Pillow is changed.

What may take long is not decoded here but by a process that can be ended (`service.pictures.decode_pool`).

`model.images.pictures` says what a decoded picture is, because training decodes its pictures in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile

from model.images import pictures
from model.images.formats.essence import Essence, Excessive
from model.images.prepare import prepare_image
from service.errors import EmptyBody, TooCostly, TooLarge, Undecodable, UnsupportedFormat
from service.pictures.memory_budget import ByteBudget, always

FORMATS = pictures.FORMATS

_FOREIGN = {
    b"II*\0": "a TIFF picture",
    b"MM\0*": "a TIFF picture",
    b"\0\0\x01\0": "an icon (ICO)",
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a ZIP archive",
}
_BRANDS = {b"avif": "an AVIF picture", b"avis": "an AVIF picture", b"mif1": "a HEIF picture"}

COSTLY_S = 0.4
"""From this cost on a picture is not decoded on a thread, which nothing could end."""

QUICK_S = 0.0003
"""Up to this cost, some 100 x 100 pixels, a picture is decoded sooner than a thread would begin with it."""

PIXEL_BYTES = {"JPEG": 8, "PNG": 16, "WEBP": 25, "GIF": 16, "BMP": 16, "AVIF": 40}
"""Peak memory per decoded pixel, the most of all pixel types: the file's own pixels and copies on the way to RGB."""

PROGRESSIVE_BYTES = 6
"""What a progressive JPEG takes per pixel of the file, for libjpeg holds all coefficients until the last scan."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture, what the file held, and nothing else of the file.

    `image` is RGB, upright and without metadata, at the file's resolution or at a whole fraction of it (see
    `model.images.pictures.reduction`).
    `width` and `height` are the upright size in the file; `format` is one of `FORMATS`,
    `mode` Pillow's name of the file's pixel type. `warnings` say what a viewer would have passed over in silence.
    """

    image: Image.Image
    width: int
    height: int
    format: str
    mode: str
    warnings: tuple[str, ...] = ()


class PictureLimits(NamedTuple):
    """Pixels of a JPEG, which is decoded smaller, pixels of any other format, and pixels of a side."""

    max_pixels: int
    max_full_pixels: int
    max_side: int


Elsewhere = Callable[[Essence, str, int, PictureLimits, Callable[[], bool]], Picture]
"""Decodes a costly picture in a process, for as long as it is wanted: as `decode_essence`; raises `TooCostly`, too."""


class Costly(Exception):
    """Not a refusal: the picture is to be decoded elsewhere, for it takes longer than this thread may."""


def decode(
    data: bytes,
    *,
    max_pixels: int,
    max_side: int,
    keep_side: int,
    max_full_pixels: int | None = None,
    budget: ByteBudget | None = None,
    elsewhere: Elsewhere | None = None,
    within_s: float | None = None,
    wanted: Callable[[], bool] = always,
) -> Picture:
    """The picture in `data`, with no more detail than a use at `keep_side` pixels on the longer side needs.

    Waits until the budget has the bytes that decoding takes, for as long as the picture is `wanted`. One that may cost
    more than `within_s` raises `Costly`; else one of `COSTLY_S` is given to `elsewhere`, or decoded here if there is no
    such place. Raises `EmptyBody`, `UnsupportedFormat`, `TooLarge`, `TooCostly` (both from the header, before any
    pixel is read), `Undecodable` or `ClientGone`.
    """
    format_name = _accepted_format(data)
    limits = PictureLimits(max_pixels, min(max_pixels, max_full_pixels or max_pixels), max_side)
    try:
        essence = pictures.examined(data, format_name)
    except Excessive as error:
        raise TooCostly(
            f"expected a {format_name} file that is decoded in a moment, found {error}; "
            "export it again with plain settings"
        ) from error
    except pictures.DAMAGED as error:
        raise _undecodable(format_name, error) from error
    if not essence.width * essence.height:
        raise Undecodable(
            f"expected a picture of one pixel or more on each side, found a {format_name} file of {essence.width} x "
            f"{essence.height}; export or download it again"
        )
    _check_size(essence.width, essence.height, format_name, limits)
    if within_s is not None and essence.cost_s > within_s:
        raise Costly
    if essence.cost_s > COSTLY_S and elsewhere is not None:
        with budget.hold_patiently(_costly_bytes(essence, format_name), wanted) if budget else nullcontext():
            return elsewhere(essence, format_name, keep_side, limits, wanted)
    return decode_essence(essence, format_name, keep_side, limits, budget, wanted)


def decode_essence(
    essence: Essence,
    format_name: str,
    keep_side: int,
    limits: PictureLimits,
    budget: ByteBudget | None = None,
    wanted: Callable[[], bool] = always,
) -> Picture:
    """The picture of a file that was examined, decoded here; raises `TooLarge`, `Undecodable` or `ClientGone`."""
    try:
        with pictures.opened(essence.data, format_name) as image:
            _check_size(image.width, image.height, format_name, limits)
            size = pictures.draft(image, keep_side)
            with budget.hold(_decoding_bytes(image, format_name, size), wanted) if budget else nullcontext():
                return _picture(image, format_name, keep_side, size, essence)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(_too_large(format_name, limits, "a header that announces far more")) from error
    except pictures.DAMAGED as error:
        raise _undecodable(format_name, error) from error


def _undecodable(format_name: str, error: Exception) -> Undecodable:
    return Undecodable(
        f"expected a whole {format_name} file, found one that does not decode ({_reason(error)}); "
        "it is truncated or damaged: export or download it again"
    )


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
        raise EmptyBody(f"expected the bytes of a picture ({pictures.listed()}), found none; send the file as the body")
    if format_name := pictures.format_of(data):
        return format_name
    raise UnsupportedFormat(
        f"expected a picture as {pictures.listed()}, found {_describe(data)}; convert it to JPEG or PNG and send that"
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


def _check_size(width: int, height: int, format_name: str, limits: PictureLimits) -> None:
    if width * height > _most_pixels(format_name, limits) or max(width, height) > limits.max_side:
        raise TooLarge(_too_large(format_name, limits, f"{width} x {height}, {width * height:,} pixels"))


def _most_pixels(format_name: str, limits: PictureLimits) -> int:
    return limits.max_pixels if format_name == "JPEG" else limits.max_full_pixels


def _too_large(format_name: str, limits: PictureLimits, announced: str) -> str:
    most = _most_pixels(format_name, limits)
    larger = f" (a JPEG may have {limits.max_pixels:,})" if most < limits.max_pixels else ""
    return (
        f"expected at most {most:,} pixels and {limits.max_side:,} on a side{larger}, found {announced}; "
        "reduce the picture and send it again"
    )


def _reason(error: Exception) -> str:
    """Pillow's words where they were written for people."""
    return str(error)[:200] if isinstance(error, OSError) else "its structure is damaged"


def _decoding_bytes(image: ImageFile, format_name: str, size: tuple[int, int]) -> int:
    """Memory that decoding takes at its peak, from the header alone."""
    decoded = image.width * image.height * PIXEL_BYTES[format_name]
    whole = size[0] * size[1] * PROGRESSIVE_BYTES if image.info.get("progressive") else 0
    return decoded + whole


def _costly_bytes(essence: Essence, format_name: str) -> int:
    """The same where this process does not open the file; a JPEG counts as one that is not decoded smaller."""
    return essence.width * essence.height * PIXEL_BYTES[format_name]


def _picture(image: ImageFile, format_name: str, keep_side: int, size: tuple[int, int], essence: Essence) -> Picture:
    upright_image, turned, warnings = pictures.upright(image, keep_side, essence)
    width, height = (size[1], size[0]) if turned else size
    return Picture(upright_image, width, height, format_name, image.mode, warnings)
