"""Pictures of a frequency score and of the merged tokens. Pure: a picture and arrays in, a picture out.

The network sees only the centred square of a picture (`model.images.prepare.center_square`), so the grid of
patches covers that square. What the square cuts off is drawn dimmed and without colour: it played no part.
The same is done to patches that a pruning strategy dropped.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.config import ScoreName
from model.images.prepare import center_square
from service.pictures import figure
from service.pictures.colormaps import Colormap, coloured

View = Literal["overlay", "score", "merged", "original", "panel"]
ImageFormat = Literal["png", "webp", "jpeg"]
HeatmapFormat = Literal["png", "webp", "jpeg", "json"]
"""What a client may ask for: the drawing as a file, or its numbers."""

VIEWABLE_SIDE = 256
"""Smaller pictures (CIFAR-100 has 32 x 32) are enlarged by a whole factor, up to this on the longer side."""

UNSEEN_LEVELS = [20 + level // 2 for level in range(256)]
"""Grey levels of what the network does not see: dimmed, but not lost in a night picture."""

_DARK = 96
"""Mean level below which a token's border is lighter than the token, not darker."""

_SCORE_CAPTIONS: dict[ScoreName, str] = {"lfgm": "frequency score", "energy": "channel energy"}

_SAVE_OPTIONS: dict[ImageFormat, dict[str, Any]] = {
    "png": {"compress_level": 1},
    "webp": {"quality": 85, "method": 2},
    "jpeg": {"quality": 90, "subsampling": 0},
}


class Scene(NamedTuple):
    """What every view is drawn from; score and source map as [rows, columns]."""

    picture: Image.Image
    score: NDArray[np.float32]
    source_map: NDArray[np.integer]
    colormap: Colormap
    opacity: float
    size: int
    score_name: ScoreName


def render(
    picture: Image.Image,
    score: NDArray[np.float32],
    source_map: NDArray[np.integer],
    grid: tuple[int, int],
    *,
    view: View,
    colormap: Colormap = "jet",
    opacity: float = 0.5,
    size: int = 1024,
    score_name: ScoreName = "lfgm",
) -> Image.Image:
    """RGB drawing of one view, at most `size` on its longer side and no finer than the picture itself.

    `score` [patches] in 0..1 and `source_map` [patches] (owner token of every patch, -1 where it was pruned)
    lie on `grid` (rows, columns). `opacity` is the share of the heatmap in the overlay, `score_name` what a caption
    calls the score.
    """
    owners = np.asarray(source_map).reshape(grid)
    return _DRAW[view](Scene(picture, score_grid(score, grid), owners, colormap, opacity, size, score_name))


def score_grid(score: NDArray[np.float32], grid: tuple[int, int]) -> NDArray[np.float32]:
    """The score per patch as [rows, columns], within 0..1."""
    return np.clip(np.asarray(score, np.float32).reshape(grid), 0.0, 1.0)


def encode(image: Image.Image, format: ImageFormat) -> bytes:
    """The drawing as a file; the settings favour speed, and sharp edges between colours over size."""
    buffer = io.BytesIO()
    image.save(buffer, format, **_SAVE_OPTIONS[format])
    return buffer.getvalue()


def _original(scene: Scene) -> Image.Image:
    return fit(scene.picture, scene.size)


def _overlay(scene: Scene) -> Image.Image:
    canvas = fit(scene.picture, scene.size)
    box = center_square(*canvas.size)
    seen = canvas.crop(box)
    heat = coloured(scene.score, scene.colormap, seen.size, Image.Resampling.BICUBIC)
    return _framed(canvas, Image.blend(seen, heat, scene.opacity), box)


def _merged(scene: Scene) -> Image.Image:
    canvas = fit(scene.picture, scene.size)
    box = center_square(*canvas.size)
    return _framed(canvas, painted_tokens(canvas.crop(box), scene.source_map), box)


def _score(scene: Scene) -> Image.Image:
    """The score about as large as the network's square is in the overlay, with a colour bar."""
    square = min(canvas_size(scene.picture.size, scene.size))
    side = min(max(square, VIEWABLE_SIDE), int(scene.size / (1 + figure.BAR_SHARE)))
    return figure.score_card(scene.score, scene.colormap, max(1, side))


def _panel(scene: Scene) -> Image.Image:
    """Original, score and overlay: in a row of one height, or below one another for a very wide picture."""
    letter = max(11, scene.size // 50)
    in_a_row = scene.picture.width <= 2 * scene.picture.height
    picture = fit(scene.picture, max(1, _pane_side(scene, letter, in_a_row)))
    overlay = _overlay(scene._replace(picture=picture, size=max(picture.size)))
    side = picture.height if in_a_row else picture.width // 3
    card = figure.score_card(scene.score, scene.colormap, max(1, side))
    captions = ("original", _SCORE_CAPTIONS[scene.score_name], "overlay")
    sheet = figure.arranged([picture, card, overlay], captions, letter, in_a_row=in_a_row)
    return fit(sheet, scene.size)  # the gaps alone may exceed a size of a few pixels


def _pane_side(scene: Scene, letter: int, in_a_row: bool) -> int:
    """Longer side of the picture so that two of it and the score between them fill `size`."""
    width, height = scene.picture.size
    if not in_a_row:
        room = scene.size - 3 * figure.caption_height(letter) - figure.GAP
        return min(scene.size - 2 * figure.GAP, int(room / (2 * height / width + 1 / 3)))
    tall = (scene.size - 4 * figure.GAP) / (2 * width / height + 1 + figure.BAR_SHARE)
    tall = min(tall, scene.size - figure.caption_height(letter) - figure.GAP)
    return int(tall * max(width, height) / height)


_DRAW: dict[View, Callable[[Scene], Image.Image]] = {
    "overlay": _overlay,
    "score": _score,
    "merged": _merged,
    "original": _original,
    "panel": _panel,
}


def fit(picture: Image.Image, size: int) -> Image.Image:
    """The picture at its `canvas_size`; a tiny one keeps its pixels recognisable."""
    canvas = canvas_size(picture.size, size)
    if canvas == picture.size:
        return picture
    if canvas > picture.size:
        return picture.resize(canvas, Image.Resampling.NEAREST)
    return picture.resize(canvas, Image.Resampling.BICUBIC, reducing_gap=2.0)


def canvas_size(picture: tuple[int, int], size: int) -> tuple[int, int]:
    """Width and height within `size`; never enlarged, except of a tiny picture, by a whole factor."""
    longer = max(picture)
    share = size / longer if longer > size else max(1, min(size, VIEWABLE_SIDE) // longer)
    return max(1, round(picture[0] * share)), max(1, round(picture[1] * share))


def painted_tokens(picture: Image.Image, source_map: NDArray[np.integer]) -> Image.Image:
    """Every token's patches in their mean colour, with a thin border between different tokens.

    `source_map` [rows, columns] covers the whole picture. After `make_visualization` of ToMe.
    """
    rows, columns = source_map.shape
    patches = np.ix_(_patch_of_pixel(picture.height, rows), _patch_of_pixel(picture.width, columns))
    tokens = np.unique(source_map, return_inverse=True)[1].reshape(rows, columns)[patches]
    means = _token_means(np.asarray(picture), tokens)
    painted = means[tokens]
    borders = _borders(tokens, thickness=1 + min(picture.size) // 500)
    painted[borders] = _border_colours(means)[tokens[borders]]
    pruned = Image.fromarray((source_map < 0)[patches])
    return Image.composite(_unseen(picture), Image.fromarray(painted), pruned)


def _patch_of_pixel(pixels: int, patches: int) -> NDArray[np.intp]:
    return np.arange(pixels) * patches // pixels


def _token_means(pixels: NDArray[np.uint8], tokens: NDArray[np.intp]) -> NDArray[np.uint8]:
    """Mean colour [tokens, 3] over the pixels that each token owns."""
    flat = tokens.ravel()
    count = np.maximum(np.bincount(flat), 1)  # a picture may have fewer pixels than patches
    sums = [np.bincount(flat, weights=pixels[..., channel].ravel()) for channel in range(3)]
    return np.rint(np.stack(sums, axis=1) / count[:, None]).astype(np.uint8)


def _border_colours(means: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A tone [tokens, 3] that stands out from each token: lighter than a dark one, else darker."""
    dark = means.mean(axis=1, keepdims=True) < _DARK
    return np.where(dark, means // 4 * 3 + np.uint8(64), means // 2)


def _borders(tokens: NDArray[np.intp], thickness: int) -> NDArray[np.bool_]:
    """Pixels up to `thickness` left of or above a pixel of another token."""
    border = np.zeros(tokens.shape, bool)
    border[:, :-thickness] |= tokens[:, :-thickness] != tokens[:, thickness:]
    border[:-thickness] |= tokens[:-thickness] != tokens[thickness:]
    return border


def _framed(canvas: Image.Image, seen: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """The canvas with `seen` in its square, and the rest as the network sees it: not at all."""
    if seen.size == canvas.size:
        return seen
    framed = _unseen(canvas)
    framed.paste(seen, box)
    return framed


def _unseen(picture: Image.Image) -> Image.Image:
    return picture.convert("L").point(UNSEEN_LEVELS).convert("RGB")
