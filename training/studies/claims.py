"""What the seed's README claims, as data: the tables put the measured number beside each.

The claims are for a ViT-Small/16 at 224 pixels on CIFAR-100 and an RTX 3060; nobody here measured them.
"""

from __future__ import annotations

from typing import NamedTuple


class Claim(NamedTuple):
    """One row of a table of the seed's README; None where that table has no such column."""

    top1: float
    """Percent."""
    images_per_s: int
    gmacs: float | None = None
    """The seed writes GFLOPs."""
    parameters_m: float | None = None
    """Millions."""


METHODS: dict[str, Claim] = {
    "plain": Claim(83.74, 975, 4.61, 22.1),
    "dynamicvit": Claim(81.40, 1510, 2.90, 25.4),
    "tome": Claim(80.38, 1575, 2.70, 22.1),
    "freqmerge": Claim(82.65, 1560, 2.75, 22.1),
}

SEED_LABELS: dict[str, str] = {
    "plain": "ViT-Small (Baseline)",
    "dynamicvit": "DynamicViT (r=0.5)",
    "tome": "ToMe (r=0.5)",
    "freqmerge": "FreqMerge (Ours)",
}

ALPHA: dict[float, Claim] = {
    0.0: Claim(80.38, 1575),
    0.25: Claim(81.90, 1570),
    0.5: Claim(82.40, 1565),
    0.7: Claim(82.65, 1560),
    1.0: Claim(82.10, 1545),
}

SCORING: dict[str, Claim] = {
    "random": Claim(78.20, 1590),
    "attention": Claim(81.80, 1555),
    "lfgm": Claim(82.65, 1560),
}

PICTURED_CLASSES = ("deer", "bicycle", "airplane", "dolphin")
"""Classes that the seed's picture says it shows."""

PUBLISHED: dict[str, tuple[str, float]] = {"tome": ("tome_13", 2.7), "dynamicvit": ("dynamicvit_0.7", 2.9)}
"""What the authors' own READMEs give (ToMe: ViT-S/16, DynamicViT: DeiT-S): row of the counts, GMACs without merging."""
