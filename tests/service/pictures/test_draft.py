"""What it costs the answer that large JPEGs are decoded smaller, and what it costs in memory to decode at all."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.checkpoint import load_checkpoint
from model.engines.choice import create_engine
from model.images.pictures import network_side
from model.images.prepare import prepare_image
from service.api.predictions import probabilities
from service.pictures import decoding
from service.pictures.memory_budget import ByteBudget, always
from tests.service.conftest import DEADLINE_S
from tests.support import paths

SAMPLES = sorted(paths.SAMPLES.glob("*.jpg"))
LIMITS = {"max_pixels": 25_000_000, "max_side": 16_384}
NATIVE = 32
KEEP_SIDE = network_side(NATIVE)


def jpeg(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def as_from_a_phone(path: Path) -> bytes:
    """A sample as a JPEG of 3000 pixels: six times the side that the service decodes it at."""
    with Image.open(path) as image:
        height = round(3000 * image.height / image.width)
        return jpeg(image.convert("RGB").resize((3000, height), Image.Resampling.BICUBIC), quality=92)


def test_decoding_photos_smaller_changes_no_label_and_hardly_a_score() -> None:
    files = [as_from_a_phone(path) for path in SAMPLES]
    drafted = [decoding.decode(data, keep_side=KEEP_SIDE, **LIMITS) for data in files]
    assert all(max(picture.image.size) < 1000 for picture in drafted), "they were decoded smaller"
    whole = [prepare_image(Image.open(io.BytesIO(data)).convert("RGB"), NATIVE) for data in files]
    engine = create_engine(load_checkpoint(paths.MINI), "eager", "cpu", 32, 1)
    fast = engine.run(np.stack([decoding.network_input(picture, NATIVE) for picture in drafted]))
    slow = engine.run(np.stack(whole))
    assert fast.logits.argmax(1).tolist() == slow.logits.argmax(1).tolist()
    shares = [np.abs(probabilities(a) - probabilities(b)).max() for a, b in zip(fast.logits, slow.logits, strict=True)]
    assert max(shares) < 0.05
    assert np.abs(fast.frequency_score - slow.frequency_score).mean(axis=1).max() < 0.02
    assert np.abs(fast.energy - slow.energy).mean(axis=1).max() < 0.02


class Recorded(ByteBudget):
    """A budget that remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__(1 << 40)
        self.asked: list[int] = []

    @contextmanager
    def hold(self, size: int, wanted: Callable[[], bool] = always) -> Iterator[None]:
        self.asked.append(size)
        yield


@pytest.mark.parametrize(
    ("format", "options", "keep_side", "expected"),
    [
        ("PNG", {}, 64, 800 * 600 * 16),
        ("WEBP", {}, 64, 800 * 600 * 25),
        ("GIF", {}, 64, 800 * 600 * 16),
        ("JPEG", {}, 1000, 800 * 600 * 8),
        ("JPEG", {}, 64, 100 * 75 * 8),
        ("JPEG", {"progressive": True}, 64, 100 * 75 * 8 + 800 * 600 * 6),
    ],
)
def test_the_memory_of_decoding_is_known_from_the_header(
    format: str, options: dict[str, object], keep_side: int, expected: int
) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (800, 600), (10, 20, 30)).save(buffer, format, **options)
    budget = Recorded()
    decoding.decode(buffer.getvalue(), keep_side=keep_side, budget=budget, **LIMITS)
    assert budget.asked == [expected]


def test_a_picture_is_not_decoded_before_its_bytes_are_free() -> None:
    budget = ByteBudget(1000)
    done = threading.Event()

    def decode() -> None:
        decoding.decode(jpeg(Image.new("RGB", (16, 16))), keep_side=64, budget=budget, **LIMITS)
        done.set()

    with budget.hold(1000):
        thread = threading.Thread(target=decode)
        thread.start()
        while budget.waiting == 0:
            done.wait(0.001)
        assert not done.is_set()
    assert done.wait(DEADLINE_S)
    thread.join(DEADLINE_S)
    assert budget.held == 0
