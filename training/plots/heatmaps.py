"""A frequency score of some images, as the seed draws it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from model import files
from model.config import ScoreName

SIDE = 224
"""Side of one picture in pixels."""
OPACITY = 0.5

_LABELS: dict[ScoreName, str] = {"lfgm": "score φ", "energy": "energy"}
_ENDS: dict[ScoreName, list[str]] = {
    "lfgm": ["0: merges first", "1: protected"],
    "energy": ["0: smooth", "1: detailed"],
}


def heatmaps(
    pixels: UInt8[np.ndarray, "count 3 side side"],
    scores: Float[np.ndarray, "count rows columns"],
    names: Sequence[str],
    path: Path,
    score_name: ScoreName = "lfgm",
) -> None:
    """Three rows: images, score (JET, blue 0 to red 1, one square per patch), score over image."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure  # slow to import, and only needed here

    columns = len(names)
    figure = Figure(figsize=(1.75 * columns + 1.6, 5.4), layout="compressed")
    axes = figure.subplots(3, columns, squeeze=False)
    for column, name in enumerate(names):
        image, score = enlarged(pixels[column]), coloured(scores[column])
        for row, picture in enumerate((image, score, overlaid(image, score))):
            axes[row, column].imshow(picture, interpolation="nearest")
            axes[row, column].set(xticks=[], yticks=[])
        axes[0, column].set_title(name.replace("_", " "), fontsize=10)
    for row, label in enumerate(("image", _LABELS[score_name], "overlay")):
        axes[row, 0].set_ylabel(label)
    bar = figure.colorbar(ScalarMappable(cmap="jet"), ax=axes, shrink=0.6, aspect=30)
    bar.set_ticks([0, 1], labels=_ENDS[score_name])
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def enlarged(pixels: UInt8[np.ndarray, "3 side side"]) -> UInt8[np.ndarray, "224 224 3"]:
    """The image at picture size, smoothly."""
    return np.asarray(Image.fromarray(pixels.transpose(1, 2, 0)).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def coloured(score: Float[np.ndarray, "rows columns"]) -> UInt8[np.ndarray, "224 224 3"]:
    """The score at picture size, in JET; every patch keeps its one value."""
    from matplotlib import colormaps

    colours = (colormaps["jet"](score)[:, :, :3] * 255).round().astype(np.uint8)
    return np.asarray(Image.fromarray(colours).resize((SIDE, SIDE), Image.Resampling.NEAREST))


def overlaid(
    image: UInt8[np.ndarray, "224 224 3"], score: UInt8[np.ndarray, "224 224 3"]
) -> UInt8[np.ndarray, "224 224 3"]:
    """Half image, half score."""
    return ((1 - OPACITY) * image + OPACITY * score).round().astype(np.uint8)
