"""Parts of the sample pictures: photographs for tests that need more than noise."""

import numpy as np
from PIL import Image

from tests.support.paths import SAMPLES

PICTURES = ("astronaut", "chelsea", "china", "coffee", "rocket")


def crops(side):
    """Sixteen parts of each of these five sample pictures, uint8 [80, 3, side, side]."""
    found = []
    for name in PICTURES:
        with Image.open(SAMPLES / f"{name}.jpg") as picture:
            small = np.asarray(picture.convert("RGB").resize((4 * side, 4 * side)))
        found.append(small.reshape(4, side, 4, side, 3).transpose(0, 2, 4, 1, 3).reshape(16, 3, side, side))
    return np.concatenate(found)
