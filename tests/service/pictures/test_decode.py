import io
import random
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, PngImagePlugin

import service
from model.images import pictures
from model.images.prepare import prepare_image
from service.errors import EmptyBody, TooLarge, Undecodable, UnsupportedFormat, UploadError
from service.pictures import decoding

SAMPLES = Path(service.__path__[0]) / "samples"
LIMITS = {"max_pixels": 25_000_000, "max_side": 16_384, "keep_side": 1024}
RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def decode(data: bytes, **limits: int) -> decoding.Picture:
    return decoding.decode(data, **{**LIMITS, **limits})


def file(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels(picture: decoding.Picture) -> np.ndarray:
    return np.asarray(picture.image).astype(int)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def photo(width: int, height: int) -> Image.Image:
    with Image.open(SAMPLES / "coffee.jpg") as image:
        return image.resize((width, height), Image.Resampling.BICUBIC)


def png_header(width: int, height: int) -> bytes:
    """A PNG that ends before its first pixel."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = struct.pack(">I", 1000) + b"IDAT"
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body)) + pixels


# what is taken


@pytest.mark.parametrize("format", decoding.FORMATS)
def test_every_accepted_format_gives_the_picture_that_was_saved(format):
    image = photo(60, 40)
    picture = decode(file(image, format))
    assert (picture.format, picture.width, picture.height) == (format, 60, 40)
    assert np.abs(pixels(picture) - np.asarray(image)).mean() < 8  # JPEG, WEBP and GIF are lossy


def test_the_format_is_read_from_the_bytes_and_reported_with_the_pixel_type():
    assert decode(file(noise(8, 8).convert("L"))).mode == "L"
    assert decode(file(noise(8, 8).convert("CMYK"), "JPEG")).mode == "CMYK"


def test_a_grey_picture_has_three_equal_channels():
    grey = noise(9, 7).convert("L")
    assert (pixels(decode(file(grey))) == np.asarray(grey)[..., None]).all()


def test_a_one_bit_picture_is_black_and_white():
    bits = np.eye(8, dtype=bool)
    assert (pixels(decode(file(Image.fromarray(bits))))[..., 1] == 255 * bits).all()


def test_a_cmyk_jpeg_keeps_its_colours():
    image = Image.new("RGB", (16, 16), (200, 30, 60)).convert("CMYK")
    found = pixels(decode(file(image, "JPEG", quality=95)))
    assert np.abs(found - (200, 30, 60)).max() <= 4


def test_a_16_bit_gradient_keeps_its_mid_grey():
    levels = np.linspace(0, 65535, 256).round().astype(np.uint16)[None].repeat(4, axis=0)
    found = pixels(decode(file(Image.fromarray(levels))))
    assert (found[..., 0] == np.arange(256)).all()
    assert found[0, 128].tolist() == [128, 128, 128]


def test_the_transparent_level_of_16_bit_grey_becomes_white():
    levels = np.array([[1000, 40000]], np.uint16)
    data = file(Image.fromarray(levels), transparency=1000)
    assert pixels(decode(data))[0].tolist() == [[255] * 3, [40000 >> 8] * 3]


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_transparency_lands_on_white(format):
    image = Image.new("RGBA", (4, 2), (255, 0, 0, 0))
    image.paste((0, 0, 255, 128), (2, 0, 4, 2))
    found = pixels(decode(file(image, format, **({"lossless": True} if format == "WEBP" else {}))))
    assert found[0, 0].tolist() == [255, 255, 255]
    assert np.abs(found[0, 3] - (127, 127, 255)).max() <= 1


def test_a_transparent_palette_entry_becomes_white_and_the_others_keep_their_colour():
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    assert pixels(decode(file(image, transparency=0)))[0].tolist() == [list(WHITE), list(BLUE)]
    assert pixels(decode(file(image)))[0].tolist() == [list(RED), list(BLUE)]


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE, WHITE)]
    for format in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if format == "WEBP" else {}
        picture = decode(file(frames[0], format, save_all=True, append_images=frames[1:], **options))
        assert pixels(picture)[4, 4].tolist() == list(RED)


def test_a_progressive_jpeg_equals_the_sequential_one():
    image = photo(64, 48)
    progressive, sequential = (decode(file(image, "JPEG", progressive=flag)) for flag in (True, False))
    assert (pixels(progressive) == pixels(sequential)).all()


def test_a_multi_picture_jpeg_of_a_phone_gives_its_main_picture():
    data = file(Image.new("RGB", (16, 16), RED), "MPO", save_all=True, append_images=[noise(16, 16)])
    picture = decode(data)
    assert (picture.format, pixels(picture)[8, 8, 0] > 250) == ("JPEG", True)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_turned_by_exif_equals_the_upright_one(orientation, format):
    upright = photo(48, 32)
    undo = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    turn = undo.get(orientation, pictures.UPRIGHT.get(orientation))  # all others are their own inverse
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright if turn is None else upright.transpose(turn)
    options = {"JPEG": {"quality": 98, "subsampling": 0}, "WEBP": {"lossless": True}}.get(format, {})
    picture = decode(file(stored, format, exif=exif, **options))
    assert (picture.width, picture.height) == picture.image.size == (48, 32)
    assert np.abs(pixels(picture) - np.asarray(upright)).max() <= (0 if format != "JPEG" else 12)


def test_a_damaged_exif_block_leaves_the_picture_as_it_lies():
    data = file(noise(8, 6), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff\xff\xff")
    assert decode(data).image.size == (8, 6)


def test_nothing_of_the_files_metadata_leaves_again():
    exif = Image.Exif()
    exif[0x010F] = "secret maker"
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "secret place")
    for data in (
        file(noise(8, 8), "JPEG", exif=exif, comment=b"secret", icc_profile=b"secret profile"),
        file(noise(8, 8), "PNG", exif=exif, pnginfo=text, icc_profile=b"secret profile"),
        file(noise(8, 8), "WEBP", exif=exif, icc_profile=b"secret profile"),
    ):
        assert b"secret" in data
        picture = decode(data)
        assert picture.image.info == {}
        assert type(picture.image) is Image.Image
        assert not any(b"secret" in file(picture.image, format) for format in ("PNG", "JPEG", "WEBP"))


# what is refused


def test_no_bytes_are_an_empty_body():
    with pytest.raises(EmptyBody, match=r"^expected .* found none; send"):
        decode(b"")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"hello, world", "text"),
        (b"<?xml version='1.0'?><svg/>", "SVG"),
        (b"%PDF-1.7\n", "PDF"),
        (b"\0\0\1\0\1\0\x10\x10", "ICO"),
        (file(Image.new("RGB", (4, 4)), "TIFF"), "TIFF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0", "HEIF"),
        (b"BM is no picture, but two letters", "text"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "video"),
        (b"RIFF\0\0\0\0WAVEfmt ", "52 49 46 46"),
        (b"\x07\x08\xff", "07 08 ff"),
    ],
)
def test_other_formats_are_refused_by_name_with_the_way_out(data, words):
    with pytest.raises(UnsupportedFormat, match=f"expected .*JPEG.* found .*{words}.*; convert it"):
        decode(data)


@pytest.mark.parametrize("format", decoding.FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_a_truncated_file_is_undecodable(format, share):
    data = file(photo(320, 240), format)
    with pytest.raises(Undecodable, match=rf"^expected a whole {format} file, found .*; it is truncated or"):
        decode(data[: int(share * len(data))])


def test_a_huge_picture_is_refused_from_its_header_alone(recwarn):
    # had a pixel been read, the missing ones would have made it undecodable
    with pytest.raises(TooLarge, match=r"at most 25,000,000 pixels .* found 20000 x 20000, 400,000,000 "):
        decode(png_header(20_000, 20_000))
    with pytest.raises(TooLarge, match="found 11000 x 11000"):  # Pillow itself would only warn
        decode(png_header(11_000, 11_000))
    with pytest.raises(Undecodable):
        decode(png_header(5_000, 5_000))
    assert not recwarn.list


def test_every_format_is_measured_before_it_is_decoded():
    for format in decoding.FORMATS:
        data = file(photo(200, 100), format)
        with pytest.raises(TooLarge, match="found 200 x 100"):
            decode(data[: len(data) if format == "WEBP" else len(data) // 2], max_pixels=19_999)


def test_the_limits_themselves_are_allowed():
    data = file(photo(200, 100))
    assert decode(data, max_pixels=20_000, max_side=200).width == 200
    with pytest.raises(TooLarge, match="at most 25,000,000 pixels and 199 on a side"):
        decode(data, max_side=199)


def test_a_webp_that_announces_too_much_for_libwebp_is_too_large():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = bytearray(file(noise(8, 8), "WEBP", exif=exif))
    assert data[12:16] == b"VP8X"
    data[24:30] = (16_383).to_bytes(3, "little") * 2
    with pytest.raises(TooLarge, match="expected at most"):
        decode(bytes(data))


def hostile_files() -> list[bytes]:
    """Small real pictures of all kinds, with their headers, palettes and side notes."""
    exif = Image.Exif()
    exif[0x0112] = 6
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "x" * 50, zip=True)
    image = photo(31, 24)
    return [
        file(image, "JPEG", exif=exif, icc_profile=b"profile"),
        file(image.convert("CMYK"), "JPEG", progressive=True),
        file(image, "MPO", save_all=True, append_images=[image]),
        file(image, "PNG", exif=exif, pnginfo=text),
        file(image.quantize(16), "PNG", transparency=3),
        file(Image.fromarray(np.arange(512, dtype=np.uint16).reshape(16, 32) * 128)),
        file(image, "GIF", save_all=True, append_images=[image.rotate(90)]),
        file(image, "WEBP", exif=exif),
        file(image.convert("RGBA"), "WEBP", lossless=True),
    ]


def mutated(data: bytes, dice: random.Random) -> bytes:
    """The file with some bytes overwritten, inserted, left out or cut off; PNG checksums made right again."""
    found = bytearray(data)
    for _ in range(dice.choice((1, 2, 8))):
        where = dice.randrange(min(len(found), dice.choice((60, 100_000))))
        kind = dice.randrange(6)
        if kind == 0:
            del found[max(8, where) :]
        elif kind == 1:
            del found[where : where + dice.randrange(1, 9)]
        elif kind == 2:
            found[where:where] = dice.randbytes(dice.randrange(1, 9))
        else:
            found[where] = dice.choice((0, 127, 128, 255, dice.randrange(256)))
    return with_right_checksums(bytes(found)) if found.startswith(b"\x89PNG\r\n\x1a\n") else bytes(found)


def with_right_checksums(png: bytes) -> bytes:
    found, at = png[:8], 8
    while at + 12 <= len(png) and (size := int.from_bytes(png[at : at + 4])) <= len(png):
        body = png[at + 4 : at + 8 + size]
        found += png[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + size
    return found + png[at:]


@pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged EXIF blocks
@pytest.mark.parametrize("seed", range(9))
def test_mutated_files_raise_only_our_errors(seed):
    dice = random.Random(seed)
    data = hostile_files()[seed]
    for _ in range(25):
        try:
            picture = decode(mutated(data, dice), max_pixels=4_000_000, max_side=4_000, keep_side=64)
        except UploadError as error:
            assert error.detail.startswith("expected ")  # noqa: PT017
        else:
            assert picture.image.mode == "RGB"
            assert decoding.network_input(picture, 8).shape == (3, 8, 8)


def test_decoding_leaves_pillows_global_settings_alone():
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, dict(Image.OPEN))
    for data in (file(noise(8, 8)), png_header(20_000, 20_000), b"text"):
        try:
            decode(data)
        except UploadError:
            continue
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, dict(Image.OPEN)) == before


def test_many_threads_decode_the_same_bytes_to_the_same_picture():
    files = [file(photo(160, 120), format) for format in decoding.FORMATS] * 6
    expected = [pixels(decode(data)) for data in files]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(decode, files))
    assert all((pixels(picture) == right).all() for picture, right in zip(found, expected, strict=True))


# how much is kept


@settings(deadline=None)
@given(st.integers(1, 16_384), st.integers(1, 16_384), st.integers(1, 4096))
def test_the_reduction_leaves_enough_and_not_much_more(width, height, keep_side):
    factor = pictures.reduction(width, height, keep_side)
    shorter, longer = sorted((width, height))
    floor = min(pictures.SHORT_SIDE_FLOOR, keep_side)
    assert factor == 1 or (longer / factor >= keep_side and shorter / factor >= floor)
    assert longer / factor < 2 * keep_side or shorter / factor < 2 * floor


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_large_photo_is_reduced_by_a_whole_factor_and_reports_its_full_size(format):
    picture = decode(file(photo(2000, 1200), format), keep_side=500)
    assert (picture.width, picture.height, picture.image.size) == (2000, 1200, (500, 300))


def test_reduction_averages_instead_of_picking_pixels():
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 254
    assert (pixels(decode(file(Image.fromarray(stripes)), keep_side=256)) == 127).all()


def test_the_shorter_side_of_a_wide_picture_stays_large_enough_for_the_network():
    assert decode(file(Image.new("RGB", (4000, 300))), keep_side=500).image.size == (4000, 300)
    assert decode(file(Image.new("RGB", (4000, 900))), keep_side=500).image.size == (1000, 225)


# what the network gets


def test_a_picture_of_native_size_reaches_the_network_unchanged():
    image = noise(32, 32)
    assert (decoding.network_input(decode(file(image)), 32) == np.asarray(image).transpose(2, 0, 1)).all()


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_the_network_gets_what_training_would_make_of_the_upright_file(format):
    image = photo(300, 200)
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"lossless": True} if format == "WEBP" else {}
    data = file(image.transpose(Image.Transpose.ROTATE_90), format, exif=exif, **options)
    assert (decoding.network_input(decode(data), 32) == prepare_image(image, 32)).all()


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_reducing_a_large_photo_first_moves_the_input_by_two_levels_on_average_at_most(format):
    data = file(photo(3000, 2000), format, **({"quality": 92} if format == "JPEG" else {"compress_level": 1}))
    with Image.open(io.BytesIO(data)) as full:
        expected = prepare_image(full.convert("RGB"), 32).astype(int)
    found = decoding.network_input(decode(data, keep_side=448), 32)
    assert np.abs(found - expected).mean() < 2


def test_the_network_sees_the_centre_of_a_very_wide_picture():
    image = Image.new("RGB", (3200, 64), BLUE)
    image.paste(RED, (1568, 0, 1632, 64))
    found = decoding.network_input(decode(file(image)), 32)
    inside = found[:, :, 2:-2]  # the resampling filter may look a little beyond the square
    assert (inside == np.array(RED)[:, None, None]).all()


def test_a_single_pixel_fills_the_network_input():
    found = decoding.network_input(decode(file(Image.new("RGB", (1, 1), (10, 20, 30)))), 32)
    assert (found == np.array([10, 20, 30])[:, None, None]).all()
