"""Strategies that decide which tokens a merging block reduces and how, by name.

A strategy is a `Strategy` of up to three functions; the frequency score is one among siblings, not a
constant of the code. To add one, write the functions in a file and name them in `STRATEGIES` and in
`model.config.Scoring`. Written from
the papers named in each file.
"""

from __future__ import annotations

from model.config import Scoring
from model.merging.strategies.at_random import merge_at_random, prune_at_random
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
from model.merging.strategies.strategy import Strategy
from model.merging.strategies.tofu import norm_preserving_mean
from model.merging.strategies.tomecis import importance_weighted_mean
from model.merging.strategies.view import First, View

__all__ = ["STRATEGIES", "First", "Strategy", "View", "of_role"]

STRATEGIES: dict[Scoring, Strategy] = {
    "lfgm": Strategy(lfgm, label="FreqMerge (LFGM)", exports=True),
    "none": Strategy(label="ToMe, same blocks", exports=True),
    "attention": Strategy(class_attention, needs_attention=True, label="attention score", exports=True),
    "random": Strategy(assign=prune_at_random, label="random pruning", draws=True),
    "tomecis": Strategy(combine=importance_weighted_mean, needs_attention=True, label="ToMeCIS"),
    "evit": Strategy(
        assign=keep_attentive,
        combine=fuse_inattentive,
        weighs_size=False,
        needs_attention=True,
        label="EViT, training-free",
    ),
    "pitome": Strategy(assign=merge_high_energy, label="PiToMe"),
    "tofu": Strategy(combine=norm_preserving_mean, label="ToFu (MLERP)"),
    "stream_detail": Strategy(stream_detail, label="detail of the stream, all channels", role="variant", exports=True),
    "normalised_detail": Strategy(
        normalised_detail, label="detail of the normalised stream", role="variant", exports=True
    ),
    "feature_detail": Strategy(feature_detail, label="detail of the keys", role="variant", exports=True),
    "pixel_detail": Strategy(pixel_detail, label="detail of the pixels", role="variant", exports=True),
    "detail_weighted": Strategy(
        lfgm, combine=detail_weighted_mean, label="FreqMerge, φ also weighs the merge", role="variant"
    ),
    "random_merge": Strategy(assign=merge_at_random, label="control: random merging", role="control", draws=True),
    "shuffled": Strategy(shuffled, label="control: φ shuffled", role="control", draws=True),
    "inverted": Strategy(inverted, label="control: 1 − φ", role="control"),
    "sobel": Strategy(sobel, label="control: Sobel energy", role="control"),
}
"""Every strategy by its name in the config, in the order of the tables."""


def of_role(role: str) -> list[Scoring]:
    """The strategies of one role ('method', 'variant' or 'control'), in the order of the tables."""
    return [name for name, strategy in STRATEGIES.items() if strategy.role == role]
