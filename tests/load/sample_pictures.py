"""Pictures to send: small PNGs as the model was trained on, and the photos that ship with the service."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

SAMPLES = Path(__file__).parents[2] / "service" / "samples"


def small_pngs(count: int = 64, side: int = 32, seed: int = 0) -> list[bytes]:
    """Different PNG files of `side` pixels: smooth colours with some noise, about 2 KB each at 32 pixels."""
    random = np.random.default_rng(seed)
    return [_png(random, side) for _ in range(count)]


def photos() -> list[bytes]:
    """The photos that ship with the service, as JPEG files."""
    return [path.read_bytes() for path in sorted(SAMPLES.glob("*.jpg"))]


def _png(random: np.random.Generator, side: int) -> bytes:
    coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype=np.int16)
    noisy = smooth + random.integers(-12, 13, (side, side, 3))
    buffer = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
