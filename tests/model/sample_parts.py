"""Parts of the sample pictures: photographs for tests that need more than noise."""

import numpy as np
from PIL import Image

from tests.support.paths import ROOT


def crops(side):
    """Sixteen parts of each of the five sample pictures, uint8 [80, 3, side, side]."""
    found = []
    for path in sorted((ROOT / "service/samples").glob("*.jpg")):
        with Image.open(path) as picture:
            small = np.asarray(picture.convert("RGB").resize((4 * side, 4 * side)))
        found.append(small.reshape(4, side, 4, side, 3).transpose(0, 2, 4, 1, 3).reshape(16, 3, side, side))
    return np.concatenate(found)
