"""How many patch tokens are left after each block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from model.errors import ConfigError


def default_layers(depth: int) -> tuple[int, ...]:
    """Where a model of that depth merges unless told: blocks 4, 6, 8 and 10 of 12, and in proportion of others.

    Rounded down, so 8, 12, 16 and 20 of 24; below six blocks some fall together and there are fewer than four.
    """
    return tuple(sorted({depth * layer // 12 for layer in (4, 6, 8, 10)}))


def merged_per_block(r: Any, depth: int) -> tuple[int, ...]:
    """Tokens merged away by each of `depth` blocks, for `r` as ToMe takes it.

    An int merges as many in every block. A tuple (r, inflect) merges r on average, more in later blocks where
    inflect is above 0 (from none up to 2r at 1), fewer where it is below: the first block merges r · (1 - inflect)
    rounded down, the last one 2r less that, those between on the line, rounded down. A list holds one count per
    block; blocks that it does not reach merge none. Raises `ConfigError` for anything else.
    """
    if isinstance(r, tuple) and len(r) == 2 and _whole(r[0]) and isinstance(r[1], int | float) and -1 <= r[1] <= 1:
        first = math.floor(r[0] * (1 - r[1]))
        step = (2 * r[0] - 2 * first) / max(1, depth - 1)
        return tuple(math.floor(first + step * layer) for layer in range(depth))
    if isinstance(r, list) and len(r) <= depth and all(map(_whole, r)):
        return (*r, *[0] * (depth - len(r)))
    if _whole(r):
        return (r,) * depth
    raise ConfigError(
        f"r: expected a count of at least 0, a tuple (count, inflect) with inflect -1 to 1, or a list of at most "
        f"{depth} counts, found {r!r}"
    )


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


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
