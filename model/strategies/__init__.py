"""Strategies that decide which tokens a merging block reduces and how, by name.

A strategy is a `Strategy` of up to three functions; the frequency score is one among siblings, not a
constant of the code. To add one, write the functions in a file and name them in `STRATEGIES`. Written from
the papers named in each file. `lfgm`, `none` and `attention` use only operations that export as one graph;
the others are baselines and may gather, sort or draw random numbers.
"""

from __future__ import annotations

from model.strategies.attention import class_attention
from model.strategies.controls import inverted, shuffled, sobel
from model.strategies.evit import fuse_inattentive, keep_attentive
from model.strategies.lfgm import lfgm
from model.strategies.pitome import merge_high_energy
from model.strategies.random import prune_at_random
from model.strategies.strategy import Strategy
from model.strategies.tofu import norm_preserving_mean
from model.strategies.tomecis import importance_weighted_mean
from model.strategies.view import First, View

__all__ = ["STRATEGIES", "First", "Strategy", "View"]

STRATEGIES: dict[str, Strategy] = {
    "lfgm": Strategy(lfgm),
    "none": Strategy(),
    "attention": Strategy(class_attention, needs_attention=True),
    "random": Strategy(assign=prune_at_random),
    "tomecis": Strategy(combine=importance_weighted_mean, needs_attention=True),
    "evit": Strategy(assign=keep_attentive, combine=fuse_inattentive, weighs_size=False, needs_attention=True),
    "pitome": Strategy(assign=merge_high_energy),
    "tofu": Strategy(combine=norm_preserving_mean),
    "shuffled": Strategy(shuffled),
    "inverted": Strategy(inverted),
    "sobel": Strategy(sobel),
}
