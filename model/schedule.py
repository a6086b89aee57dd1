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


def token_schedule(patches: int, depth: int, merge_layers: Sequence[int], keep_rate: float) -> tuple[int, ...]:
    """Patch tokens left after each of `depth` blocks; prefix tokens are not counted.

    Raises `ConfigError` if a merging block lies outside the depth.
    """
    outside = [layer for layer in merge_layers if layer >= depth]
    if outside:
        raise ConfigError(
            f"merge_layers: expected block indices 0..{depth - 1} for a backbone of depth {depth}, found {outside}"
        )
    left, counts = patches, []
    for layer in range(depth):
        if layer in merge_layers:
            left = tokens_kept(left, keep_rate)
        counts.append(left)
    return tuple(counts)
