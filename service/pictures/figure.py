"""Drawings with words on them: the score with its colour bar, and several panes with captions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from service.pictures.colormaps import Colormap, coloured

BAR_SHARE = 0.14
"""Width of the colour bar with its gap and numbers, as a share of the score's side."""

GAP = 12
"""Pixels between panes and around them."""

_LEGIBLE_SIDE = 96
"""A smaller score has no colour bar: its numbers could not be read."""

_PAPER, _INK = (255, 255, 255), (51, 51, 51)


def score_card(score: NDArray[np.float32], colormap: Colormap, side: int) -> Image.Image:
    """The score [rows, columns] as a square of crisp patches, and a bar beside it to explain the colours."""
    square = coloured(score, colormap, (side, side), Image.Resampling.NEAREST)
    if side < _LEGIBLE_SIDE:
        return square
    card = Image.new("RGB", (side + int(side * BAR_SHARE), side), _PAPER)
    card.paste(square)
    _draw_bar(card, colormap, side)
    return card


def _draw_bar(card: Image.Image, colormap: Colormap, side: int) -> None:
    left, width = side + side // 32, side // 24
    ramp = np.linspace(1, 0, side, dtype=np.float32)[:, None]
    card.paste(coloured(ramp, colormap, (width, side), Image.Resampling.NEAREST), (left, 0))
    pen, font, words = ImageDraw.Draw(card), _font(side // 18), left + width + side // 64
    pen.text((words, 0), "1", _INK, font, anchor="lt")
    pen.text((words, side - 1), "0", _INK, font, anchor="lb")


def arranged(panes: Sequence[Image.Image], captions: Sequence[str], letter: int, *, in_a_row: bool) -> Image.Image:
    """Panes on white, side by side or below one another, with captions above them if all of them fit."""
    font = _font(letter)
    fits = all(font.getlength(words) <= pane.width for words, pane in zip(captions, panes, strict=True))
    head = caption_height(letter) if fits else GAP
    boxes = _boxes([pane.size for pane in panes], head, in_a_row)
    sheet = Image.new("RGB", (max(box[2] for box in boxes) + GAP, max(box[3] for box in boxes) + GAP), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for pane, words, (left, top, _, _) in zip(panes, captions, boxes, strict=True):
        sheet.paste(pane, (left, top))
        if fits:
            pen.text((left, top - head // 2), words, _INK, font, anchor="lm")
    return sheet


def caption_height(letter: int) -> int:
    """Pixels that captions of a font size add above their panes."""
    return 2 * letter


def _boxes(sizes: Sequence[tuple[int, int]], head: int, in_a_row: bool) -> list[tuple[int, int, int, int]]:
    """Left, top, right and bottom of every pane."""
    boxes, left, top = [], GAP, head
    for width, height in sizes:
        boxes.append((left, top, left + width, top + height))
        left, top = (left + width + GAP, top) if in_a_row else (left, top + height + head)
    return boxes


def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    # read anew each time, 0.1 ms: FreeType does not allow one face on two threads
    return ImageFont.load_default(max(10, size))
