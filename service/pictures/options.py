"""The words that a client may use for a drawing; light to import: the routes need no tensor library."""

from typing import Literal

View = Literal["overlay", "score", "merged", "original", "panel"]
ImageFormat = Literal["png", "webp", "jpeg"]
HeatmapFormat = Literal["png", "webp", "jpeg", "json"]
