"""Colours of the heatmap as lookup tables, without matplotlib at run time.

viridis and magma (N. Smith, S. van der Walt, CC0) and turbo (A. Mikhailov, Google, Apache-2.0) are kept as
every fifth of the 256 colours in matplotlib's tables, joined by straight lines: at most one level of 255
away from the original. jet is defined piecewise as in matplotlib (PSF-based licence); gray is the identity.
"""

from __future__ import annotations

from functools import cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Colormap = Literal["jet", "viridis", "turbo", "magma", "gray"]
COLORMAPS: tuple[Colormap, ...] = get_args(Colormap)

_LEVELS = 256

_SAMPLED = {
    "viridis": (
        "44015446085c471063481769481d6f482475472a7a46307e453781433d844142873f48893d4e8a3a538b38598c355e8d"
        "33638d31688e2e6d8e2c718e2a768e297b8e27808e25848e23898e218e8d20928c1f978b1e9c891fa18821a58524aa83"
        "28ae802eb37c35b7793dbc7446c06f50c46a5ac86465cb5e70cf577cd25089d54895d840a2da37b0dd2fbddf26cae11f"
        "d8e219e5e419f1e51dfde725"
    ),
    "magma": (
        "00000402020b0504160907200e0b2b140e361a104221114e29115a311165390f6e420f754a107952137c5a167e621980"
        "6a1c81721f81792282812581892881912b81992d80a1307eaa337db2357bba3878c23b75ca3e72d2426fd9466be04c67"
        "e75263ec5860f1605df4695cf7725cf97b5dfb8560fc8e64fd9869fea16efeaa74feb47bfebd82fec68afecf92fed89a"
        "fde2a3fdebacfcf4b6fcfdbf"
    ),
    "turbo": (
        "30123b36215f3b2f803f3e9c424bb54559cb4666dd4773eb4680f6458cfd4099ff38a5fb2fb2f427bee91fc9dd1ad4d0"
        "18ddc21ae4b622ebaa2ff19b3ff68a52fa7a65fd6979fe598bff4b9cfe40a9fb39b7f735c3f134d0ea34dbe236e5d938"
        "eecf3af5c53afaba39fdae35fea130fe932afc8423f9751df46617ef5811e84b0ce14109d83706ce2d04c32503b71d02"
        "a916019b0f018b09027a0403"
    ),
}
"""Evenly spaced colours from score 0 to score 1, three bytes each, in hexadecimal."""

_JET = (
    ((0.0, 0.35, 0.66, 0.89, 1.0), (0, 0, 1, 1, 0.5)),
    ((0.0, 0.125, 0.375, 0.64, 0.91, 1.0), (0, 0, 1, 1, 0, 0)),
    ((0.0, 0.11, 0.34, 0.65, 1.0), (0.5, 1, 1, 0, 0)),
)
"""Scores and shares of full red, green and blue, joined by straight lines."""


def coloured(
    score: NDArray[np.float32], colormap: Colormap, size: tuple[int, int], resampling: Image.Resampling
) -> Image.Image:
    """A grid of scores in 0..1 as an RGB picture of `size` (width, height).

    It is enlarged before it is coloured, so that only colours of the map occur.
    """
    levels = Image.fromarray(np.rint(score * (_LEVELS - 1)).astype(np.uint8)).resize(size, resampling)
    levels.putpalette(lookup_table(colormap).tobytes())
    return levels.convert("RGB")


@cache
def lookup_table(name: Colormap) -> NDArray[np.uint8]:
    """Colours [256, 3] for the scores 0, 1/255, … 1; read-only."""
    scores = np.linspace(0, 1, _LEVELS)
    if name == "gray":
        channels = [scores] * 3
    elif name == "jet":
        channels = [np.interp(scores, where, share) for where, share in _JET]
    else:
        nodes = np.frombuffer(bytes.fromhex(_SAMPLED[name]), np.uint8).reshape(-1, 3)
        channels = [np.interp(scores, np.linspace(0, 1, len(nodes)), channel / 255) for channel in nodes.T]
    table = np.rint(np.stack(channels, axis=1) * 255).astype(np.uint8)
    table.flags.writeable = False
    return table
