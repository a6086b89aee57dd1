"""Strategies that decide which tokens a merging block reduces and how, by name.

A strategy is a `Strategy` of up to three functions; the frequency score is one among siblings, not a
constant of the code. To add one, write the functions in a file and name them in `STRATEGIES`. Written from
the papers named in each file.
"""

from __future__ import annotations

from model.merging.strategies.attention import class_attention
from model.merging.strategies.controls import inverted, shuffled, sobel
from model.merging.strategies.detail import (
    detail_weighted_mean,
    feature_detail,
    normalised_detail,
    pixel_detail,
    stream_detail,
)
from model.merging.strategies.evit import fuse_inattentive, keep_attentive
from model.merging.strategies.lfgm import lfgm
from model.merging.strategies.pitome import merge_high_energy
from model.merging.strategies.random import merge_at_random, prune_at_random
from model.merging.strategies.strategy import Strategy
from model.merging.strategies.tofu import norm_preserving_mean
from model.merging.strategies.tomecis import importance_weighted_mean
from model.merging.strategies.view import First, View

__all__ = ["EXPORTABLE", "STRATEGIES", "First", "Strategy", "View"]

STRATEGIES: dict[str, Strategy] = {
    "lfgm": Strategy(lfgm),
    "none": Strategy(),
    "attention": Strategy(class_attention, needs_attention=True),
    "random": Strategy(assign=prune_at_random),
    "tomecis": Strategy(combine=importance_weighted_mean, needs_attention=True),
    "evit": Strategy(assign=keep_attentive, combine=fuse_inattentive, weighs_size=False, needs_attention=True),
    "pitome": Strategy(assign=merge_high_energy),
    "tofu": Strategy(combine=norm_preserving_mean),
    "stream_detail": Strategy(stream_detail),
    "normalised_detail": Strategy(normalised_detail),
    "feature_detail": Strategy(feature_detail),
    "pixel_detail": Strategy(pixel_detail),
    "detail_weighted": Strategy(lfgm, combine=detail_weighted_mean),
    "random_merge": Strategy(assign=merge_at_random),
    "shuffled": Strategy(shuffled),
    "inverted": Strategy(inverted),
    "sobel": Strategy(sobel),
}

EXPORTABLE = ("lfgm", "none", "attention", "stream_detail", "normalised_detail", "feature_detail", "pixel_detail")
"""Strategies that export as one graph without gather or scatter; the others are baselines and may use them."""
