"""Whatever a file is made of, decoding it ends within two seconds of a core, and nothing goes on afterwards."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.images import pictures
from model.images.formats.essence import MAX_PARTS, orientation_of
from service.errors import ClientGone, RequestError, TooCostly, TooLarge, Undecodable
from service.pictures import decoding
from service.pictures.decode_pool import DecodeWorkers
from tests.service.conftest import DEADLINE_S
from tests.support.costly import COSTLY, many_scans, noisy_jpeg, paeth, segments
from tests.support.hostile import saved

LIMITS = {"max_pixels": 50_000_000, "max_full_pixels": 25_000_000, "max_side": 16_384, "keep_side": 448}
ALLOWED_S = 2.0


@pytest.fixture(scope="module")
def workers() -> Iterator[DecodeWorkers]:
    found = DecodeWorkers(1, 1.8, 1 << 30)
    yield found
    found.close()


def own_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("kind", COSTLY)
def test_a_file_of_any_costly_kind_ends_within_its_time(kind: str, workers: DecodeWorkers) -> None:
    data = COSTLY[kind]()
    assert len(data) < 11 << 20
    before, killed = own_cpu_s(), workers.killed.total()
    try:
        picture = decoding.decode(data, **LIMITS, elsewhere=workers.decode)
    except (TooLarge, TooCostly, Undecodable) as error:
        assert error.detail.startswith("expected ")  # noqa: PT017
    else:
        assert picture.image.mode == "RGB"
    assert own_cpu_s() - before < ALLOWED_S / 4  # what this process does, mostly under the interpreter lock
    assert workers.killed.total() - killed <= 1  # what it leaves to the other is bounded by the kernel


def test_too_many_scans_are_refused_by_their_header_with_the_reason() -> None:
    with pytest.raises(TooCostly, match=r"found 2,6\d\d scans over 375,769 blocks; export it again"):
        decoding.decode(many_scans(4900, 2600), **LIMITS)
    with pytest.raises(TooCostly, match=f"found more than {MAX_PARTS:,} segments"):
        decoding.decode(segments(0xFE, b"", 1 << 20), **LIMITS)


def test_some_scans_too_many_are_no_reason_to_refuse() -> None:
    assert decoding.decode(many_scans(1000, 150), **LIMITS).width == 1000


def test_a_worker_gives_the_same_picture_as_a_thread(workers: DecodeWorkers) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = noisy_jpeg(300, 200, exif=exif)[:-2]
    essence = pictures.examined(data, "JPEG")
    limits = decoding.PictureLimits(10**8, 10**8, 10_000)
    here = decoding.decode_essence(essence, "JPEG", 448, limits)
    there = workers.decode(essence, "JPEG", 448, limits)
    assert (np.asarray(here.image) == np.asarray(there.image)).all()
    assert (there.width, there.height, there.mode, there.warnings) == (200, 300, here.mode, here.warnings)
    assert there.warnings


def test_the_kernel_ends_a_picture_that_takes_its_time_and_the_next_one_is_decoded() -> None:
    workers = DecodeWorkers(1, 0.05, 1 << 30)
    essence = pictures.examined(paeth(3000), "PNG")
    limits = decoding.PictureLimits(10**8, 10**8, 10_000)
    small = pictures.examined(saved(Image.new("RGB", (8, 8), "red"), "PNG"), "PNG")
    try:
        with pytest.raises(TooCostly, match=r"decoded within 0\.05 s of a core, found one that takes longer"):
            workers.decode(essence, "PNG", 448, limits)
        assert workers.decode(small, "PNG", 448, limits).image.getpixel((0, 0)) == (255, 0, 0)
        assert dict(workers.killed) == {"cpu": 1}
        assert workers.busy == 0
    finally:
        workers.close()


def test_a_picture_that_nobody_wants_any_more_is_ended_and_the_process_goes_on() -> None:
    workers = DecodeWorkers(1, 60, 1 << 30)
    asked = threading.Event()
    small = pictures.examined(saved(Image.new("RGB", (8, 8), "red"), "PNG"), "PNG")
    limits = decoding.PictureLimits(10**9, 10**9, 100_000)
    costly = pictures.examined(paeth(4000), "PNG")

    def wanted() -> bool:
        asked.set()
        return False

    try:
        workers.decode(small, "PNG", 448, limits)  # it has started
        process = workers._free.queue[0]
        began = time.monotonic()
        with pytest.raises(ClientGone):
            workers.decode(costly, "PNG", 448, limits, wanted)
        assert asked.is_set()
        assert time.monotonic() - began < DEADLINE_S
        assert dict(workers.killed) == {"abandoned": 1}
        assert workers._free.queue[0] is process
        assert workers.decode(small, "PNG", 448, limits).width == 8
    finally:
        workers.close()


def test_a_process_that_died_is_replaced() -> None:
    workers = DecodeWorkers(1, 5, 1 << 30)
    small = pictures.examined(saved(Image.new("RGB", (8, 8), "red"), "PNG"), "PNG")
    limits = decoding.PictureLimits(10**8, 10**8, 10_000)
    try:
        workers.decode(small, "PNG", 448, limits)
        workers._free.queue[0]._process.kill()
        with pytest.raises(Undecodable, match="the decoder broke"):
            workers.decode(small, "PNG", 448, limits)
        assert workers.decode(small, "PNG", 448, limits).width == 8
    finally:
        workers.close()


def test_a_costly_picture_is_deferred_before_it_waits_for_memory() -> None:
    with pytest.raises(decoding.Costly):
        decoding.decode(saved(Image.new("RGB", (8, 8)), "AVIF"), **LIMITS, within_s=decoding.COSTLY_S)
    assert decoding.decode(saved(Image.new("RGB", (8, 8)), "PNG"), **LIMITS, within_s=decoding.QUICK_S).width == 8


@settings(max_examples=60, deadline=None)
@given(value=st.integers(0, 9), entries=st.integers(0, 20), big=st.booleans(), cut=st.integers(0, 300))
def test_the_orientation_is_read_wherever_it_stands_and_never_raises(
    value: int, entries: int, big: bool, cut: int
) -> None:
    exif = Image.Exif()
    for tag in range(entries):
        exif[0x9000 + tag] = "x" * tag
    exif[0x0112] = value
    exif.endian = ">" if big else "<"
    block = exif.tobytes()
    assert orientation_of(block) == (value if 1 <= value <= 8 else 1)
    assert 1 <= orientation_of(block[:cut]) <= 8


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_what_is_left_out_of_a_file_changes_no_pixel(data: st.DataObject) -> None:
    format = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF"]))
    picture = Image.effect_noise((33, 21), data.draw(st.integers(1, 90))).convert(data.draw(st.sampled_from("LP")))
    options = {"comment": b"c" * data.draw(st.integers(1, 600))} if format in ("JPEG", "GIF") else {}
    if format != "GIF":
        options["icc_profile"] = bytes(data.draw(st.integers(1, 200_000)))
    file = saved(picture.convert("L") if format == "JPEG" else picture, format, **options)
    essence = pictures.examined(file, format)
    assert len(essence.data) < len(file)
    assert (essence.width, essence.height) == (33, 21)
    with pictures.opened(file, format) as whole, pictures.opened(essence.data, format) as bare:
        assert (np.asarray(whole.convert("RGB")) == np.asarray(bare.convert("RGB"))).all()


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(list(pictures.FORMATS)), st.binary(max_size=400), st.integers(0, 60))
def test_examining_any_bytes_raises_nothing_but_damage(format: str, noise: bytes, kept: int) -> None:
    start = saved(Image.new("RGB", (16, 16), "red"), format)[:kept]
    try:
        assert pictures.examined(start + noise, format).cost_s >= 0
    except pictures.DAMAGED:
        return


def test_every_error_of_a_worker_is_one_of_the_refusals_of_a_thread(workers: DecodeWorkers) -> None:
    limits = decoding.PictureLimits(100, 100, 10_000)
    essence = pictures.examined(saved(Image.new("RGB", (16, 16), "red"), "PNG"), "PNG")
    with pytest.raises(TooLarge, match="at most 100 pixels"):
        workers.decode(essence, "PNG", 448, limits)
    with pytest.raises(RequestError, match="truncated or damaged"):
        workers.decode(essence._replace(data=essence.data[:50]), "PNG", 448, limits._replace(max_full_pixels=1000))
