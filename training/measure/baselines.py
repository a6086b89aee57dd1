"""Names of the strategies in tables and pictures, and which of them draw random numbers."""

from __future__ import annotations

from model.merging.strategies import STRATEGIES

LABELS: dict[str, str] = {
    "lfgm": "FreqMerge (LFGM)",
    "none": "ToMe, same blocks",
    "attention": "attention score",
    "random": "random pruning",
    "tomecis": "ToMeCIS",
    "evit": "EViT, training-free",
    "pitome": "PiToMe",
    "tofu": "ToFu (MLERP)",
    "stream_detail": "detail of the stream, all channels",
    "normalised_detail": "detail of the normalised stream",
    "feature_detail": "detail of the keys",
    "pixel_detail": "detail of the pixels",
    "detail_weighted": "FreqMerge, φ also weighs the merge",
    "random_merge": "control: random merging",
    "shuffled": "control: φ shuffled",
    "inverted": "control: 1 − φ",
    "sobel": "control: Sobel energy",
}

RANDOM = frozenset({"random", "random_merge", "shuffled"})
"""Strategies whose result depends on the seed."""

CONTROLS = frozenset({"random_merge", "shuffled", "inverted", "sobel"})
"""Strategies that ask whether the frequency score carries anything, and are no method of anyone's."""

VARIANTS = frozenset({"stream_detail", "normalised_detail", "feature_detail", "pixel_detail", "detail_weighted"})
"""Other ways of the frequency score, which the study `score` compares with it."""


def names() -> list[str]:
    """Every strategy of the registry, in the order of `LABELS`, others after them."""
    known = [name for name in LABELS if name in STRATEGIES]
    return known + [name for name in STRATEGIES if name not in LABELS]


def label(strategy: str) -> str:
    """What tables call a strategy."""
    return LABELS.get(strategy, strategy)
