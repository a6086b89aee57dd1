"""Files with small faults that every viewer shows."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.images import pictures
from service.errors import TooLarge, Undecodable
from service.pictures import decoding
from tests.support.costly import noisy_jpeg, png
from tests.support.hostile import chunk, saved

LIMITS = {"max_pixels": 50_000_000, "max_full_pixels": 25_000_000, "max_side": 16_384, "keep_side": 1024}
WHITE = [255, 255, 255]


def decode(data: bytes) -> decoding.Picture:
    return decoding.decode(data, **LIMITS)


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(decode(data).image)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}])
def test_a_jpeg_without_its_end_marker_is_the_whole_picture_with_a_warning(options: dict[str, object]) -> None:
    whole = noisy_jpeg(quality=90, **options)
    picture = decode(whole[:-2])
    assert (np.asarray(picture.image) == pixels(whole)).all()
    assert picture.warnings == ("the file is cut off; its end marker or its last details are missing",)
    assert decode(whole).warnings == ()


def test_a_jpeg_without_its_last_rows_is_the_rest_on_grey_with_a_warning() -> None:
    whole = noisy_jpeg(quality=90)
    picture = decode(whole[: int(len(whole) * 0.97)])
    assert picture.warnings[0].startswith("the file is cut off; the last 3.")
    came = np.asarray(picture.image)
    assert (came[:220] == pixels(whole)[:220]).all()


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_half_a_jpeg_is_refused_and_the_message_says_what_is_missing(options: dict[str, object]) -> None:
    whole = noisy_jpeg(quality=90, **options)
    with pytest.raises(Undecodable, match="of the picture is missing"):
        decode(whole[: len(whole) // 2])


def noisy_png(mode: str = "RGB", **options: object) -> bytes:
    noise = np.random.default_rng(0).integers(0, 65536, (200, 150, 3), dtype=np.uint16)
    image = Image.fromarray(noise[..., 0]) if mode == "I;16" else Image.fromarray(noise.astype(np.uint8)).convert(mode)
    return saved(image, "PNG", **options)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"])
@pytest.mark.parametrize("missing", [1, 11, 12, 15, 16, 17, 20])
def test_a_png_without_its_last_bytes_is_the_whole_picture_with_a_warning(mode: str, missing: int) -> None:
    whole = noisy_png(mode)
    picture = decode(whole[:-missing])
    assert (np.asarray(picture.image) == pixels(whole)).all()
    assert picture.warnings == ("the file is cut off; its end marker or its last details are missing",)
    assert decode(whole).warnings == decode(whole + b"junk").warnings == ()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "I;16"])
def test_a_png_that_is_cut_off_inside_its_pixels_is_the_rest_with_a_warning(mode: str) -> None:
    whole = noisy_png(mode)
    picture = decode(whole[: int(len(whole) * 0.97)])
    assert picture.warnings[0].startswith(("the file is cut off; the last 2.9%", "the file is cut off; the last 3.0%"))
    assert picture.warnings[0].endswith("of the picture is blank")
    came, expected = np.asarray(picture.image), pixels(whole)
    assert (came[:193] == expected[:193]).all()
    assert (came[195:] == (255 if mode == "RGBA" else 0)).all()


def test_half_a_png_is_refused_and_the_message_says_what_is_missing() -> None:
    whole = noisy_png()
    with pytest.raises(Undecodable, match=r"cut off, 50% of the picture is missing"):
        decode(whole[: len(whole) // 2])


def test_a_png_that_is_cut_off_and_damaged_is_refused() -> None:
    data = bytearray(noisy_png()[:-20])
    data[len(data) // 2] ^= 0xFF
    data[len(data) // 2 + 1 :] = bytes(len(data) // 2)
    with pytest.raises(Undecodable):
        decode(bytes(data))


PASSES = ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2))


def interlaced(levels: np.ndarray) -> bytes:
    """A grey PNG in seven passes."""
    parts = [levels[top::down, left::across] for left, across, top, down in PASSES]
    rows = b"".join(b"\0" + row.tobytes() for part in parts if part.size for row in part)
    return png(levels.shape[1], levels.shape[0], 8, 0, rows, interlace=1)


@settings(max_examples=25, deadline=None)
@given(width=st.integers(1, 40), height=st.integers(1, 40), share=st.floats(0.95, 1))
def test_an_interlaced_png_that_is_cut_off_keeps_every_pixel_that_came(width: int, height: int, share: float) -> None:
    levels = np.random.default_rng(0).integers(1, 256, (height, width), dtype=np.uint8)
    whole = interlaced(levels)
    assert (pixels(whole)[..., 0] == levels).all()
    try:
        picture = decode(whole[: int(len(whole) * share)])
    except Undecodable:
        return
    came = np.asarray(picture.image)[..., 0]
    assert ((came == levels) | (came == 0)).all()
    assert (came == 0).mean() <= 0.06


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0.3, 1), height=st.integers(100, 300), subsampling=st.sampled_from([0, 1, 2]))
def test_the_share_that_is_missing_is_the_share_of_the_bytes_of_an_even_picture(
    share: float, height: int, subsampling: int
) -> None:
    whole = noisy_jpeg(256, height, quality=90, subsampling=subsampling)
    first = whole.index(b"\xff\xda")
    cut = whole[: first + int((len(whole) - first - 2) * share)]
    try:
        decode(cut)
    except Undecodable as error:
        assert share < 0.985
        assert "missing" in error.detail  # noqa: PT017
    else:
        assert share > 0.9


@pytest.mark.parametrize("kind", [b"pHYs", b"tEXt", b"iTXt", b"iCCP", b"gAMA", b"tRNS", b"eXIf"])
def test_a_side_chunk_with_a_wrong_checksum_is_skipped(kind: bytes) -> None:
    plain = saved(Image.new("RGB", (64, 64), "red"), "PNG")
    bad = bytearray(chunk(kind, b"\0\xff\0\0\0\0\0"))
    bad[-1] ^= 1
    found = decode(plain[:33] + bytes(bad) + plain[33:])
    assert (np.asarray(found.image) == (255, 0, 0)).all()


@pytest.mark.parametrize("at", [29, -20])
def test_a_critical_chunk_with_a_wrong_checksum_is_not(at: int) -> None:
    data = bytearray(saved(Image.new("RGB", (64, 64), "red"), "PNG"))
    data[at] ^= 1
    with pytest.raises(Undecodable):
        decode(bytes(data))


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_of_any_depth_is_white_and_no_other_level_is(depth: int) -> None:
    levels = (0, 1)
    rows = b"".join(
        b"\0"
        + (struct.pack(">HH", *levels) if depth == 16 else bytes(levels) if depth == 8 else b"")
        + (bytes([0b01000000]) if depth == 1 else b"")
        + (bytes([0b00010000]) if depth == 2 else b"")
        + (bytes([0x01]) if depth == 4 else b"")
        for _ in range(2)
    )
    other = round(255 / ((1 << depth) - 1)) if depth < 16 else 0
    found = pixels(png(2, 2, depth, 0, rows, chunk(b"tRNS", b"\0\0")))
    assert found[0, 0].tolist() == WHITE
    assert found[0, 1].tolist() == [other] * 3
    turned = pixels(png(2, 2, depth, 0, rows, chunk(b"tRNS", b"\0\1")))
    assert turned[0, 0].tolist() == [0, 0, 0]
    assert turned[0, 1].tolist() == WHITE


def test_a_transparent_16_bit_colour_is_compared_in_all_its_bits() -> None:
    one, near = struct.pack(">HHH", 0x1234, 0x5678, 0x9ABC), struct.pack(">HHH", 0x1234, 0x5678, 0x9ABD)
    found = pixels(png(2, 1, 16, 2, b"\0" + one + near, chunk(b"tRNS", one)))
    assert found[0].tolist() == [WHITE, [0x12, 0x56, 0x9A]]


def test_training_and_serving_give_the_same_pixels_for_every_fault() -> None:
    whole = noisy_jpeg(quality=90)
    cut_png = noisy_png()[:-2000]
    for data in (whole[:-2], whole[: int(len(whole) * 0.97)], cut_png, saved(Image.effect_noise((50, 40), 60), "BMP")):
        name = pictures.format_of(data) or ""
        served = decoding.decode(data, **{**LIMITS, "keep_side": pictures.network_side(32)})
        assert (pictures.network_input(data, name, 32) == decoding.network_input(served, 32)).all()


def test_a_bmp_of_run_lengths_and_one_with_transparency_are_pictures() -> None:
    info = struct.pack("<IiiHHIIiiII", 40, 4, 1, 1, 8, 1, 6, 0, 0, 256, 0)
    palette = b"\0\0\xff\0" + b"\xff\0\0\0" * 255
    data = b"BM" + struct.pack("<IHHI", 54 + 1024 + 6, 0, 0, 54 + 1024) + info + palette + b"\2\0\2\1\0\1"
    assert pixels(data)[0].tolist() == [[255, 0, 0]] * 2 + [[0, 0, 255]] * 2


def test_the_orientation_of_an_avif_is_its_own_turn() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    Image.new("RGB", (40, 20), "red").save(out, "AVIF", exif=exif)
    assert (decode(out.getvalue()).width, decode(out.getvalue()).height) == (20, 40)


def test_a_jpeg_may_have_more_pixels_than_other_formats_and_the_refusal_says_so() -> None:
    jpeg = saved(Image.new("L", (6000, 5000), 9), "JPEG")
    assert decode(jpeg).width == 6000
    with pytest.raises(
        TooLarge, match=r"at most 25,000,000 pixels .* \(a JPEG may have 50,000,000\), found 6000 x 5000"
    ):
        decode(saved(Image.new("L", (6000, 5000), 9), "PNG"))


SIZE_AT = {
    "PNG": (b"IHDR", 4, ">II"),
    "JPEG": (b"\xff\xc0", 5, ">HH"),
    "WEBP": (b"VP8 ", 14, "<HH"),
    "BMP": (b"BM", 18, "<ii"),
    "AVIF": (b"ispe", 8, ">II"),
}
"""Sign before the size, how far behind its begin the size stands, and how it is written."""


def of_size(name: str, width: int, height: int) -> bytes:
    """A file whose header announces this size, and whose pixels are of another."""
    data = bytearray(saved(Image.new("RGB", (16, 16), "red"), name))
    if name == "GIF":  # of the screen, and of the frame at a place that no screen has
        start = 13 + (3 << ((data[10] & 7) + 1))
        frame = data.index(b",", start)
        data[6:10] = struct.pack("<HH", width, height)
        data[frame + 1 : frame + 9] = struct.pack("<HHHH", 65_000, 65_000, width, height)
        return bytes(data)
    sign, behind, layout = SIZE_AT[name]
    at = data.index(sign) + behind
    numbers = (height, width) if name == "JPEG" else (width, height)
    data[at : at + struct.calcsize(layout)] = struct.pack(layout, *numbers)
    if name == "PNG":
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


@pytest.mark.parametrize("name", pictures.FORMATS)
@pytest.mark.parametrize(("width", "height"), [(0, 16), (16, 0), (0, 0)])
def test_a_file_of_no_width_or_height_is_refused_with_what_was_found(name: str, width: int, height: int) -> None:
    with pytest.raises(Undecodable) as caught:
        decode(of_size(name, width, height))
    assert caught.value.detail == (
        f"expected a picture of one pixel or more on each side, found a {name} file of {width} x {height}; "
        "export or download it again"
    )
