"""How many patch tokens are left after each block."""

from __future__ import annotations

import math
from collections.abc import Sequence

from model.errors import ConfigError


def tokens_kept(tokens: int, keep_rate: float) -> int:
    """Patch tokens left of `tokens` by one merging block: the nearest integer, halves up.

    Bipartite matching merges sources (every second token) into destinations, so at least
    `ceil(tokens / 2)` stay.
    """
    return max(math.floor(tokens * keep_rate + 0.5), (tokens + 1) // 2)


def tokens_left(tokens: int, merged: int) -> int:
    """Patch tokens left of `tokens` when one block merges `merged` away: as in ToMe, half of them at most."""
    return tokens - min(merged, tokens // 2)


def token_schedule(
    patches: int, depth: int, merge_layers: Sequence[int], keep_rate: float, merge_counts: Sequence[int] = ()
) -> tuple[int, ...]:
    """Patch tokens left after each of `depth` blocks; prefix tokens are not counted.

    Each merging block keeps `keep_rate` of its tokens, or merges its own of the `merge_counts` away where
    there are any; a keep rate of 1 merges nothing either way. Raises `ConfigError` if a merging block
    lies outside the depth.
    """
    outside = [layer for layer in merge_layers if layer >= depth]
    if outside:
        raise ConfigError(
            f"merge_layers: expected block indices 0..{depth - 1} for a backbone of depth {depth}, found {outside}"
        )
    merged = dict(zip(merge_layers, merge_counts, strict=True)) if merge_counts and keep_rate < 1 else {}
    left, schedule = patches, []
    for layer in range(depth):
        if layer in merge_layers:
            left = tokens_left(left, merged[layer]) if merged else tokens_kept(left, keep_rate)
        schedule.append(left)
    return tuple(schedule)
