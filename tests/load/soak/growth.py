"""Whether memory grows: a verdict over samples of resident memory. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

LIMIT_BYTES = 50 << 20
"""Most growth in the second half of a run."""

SHARE = 0.1
"""Part of the whole run whose median stands for each end of the second half: single samples jump."""


class Growth(NamedTuple):
    """Resident memory at both ends of the second half."""

    middle_bytes: float
    end_bytes: float

    @property
    def grown_bytes(self) -> float:
        """What came on top in the second half."""
        return self.end_bytes - self.middle_bytes

    @property
    def holds(self) -> bool:
        """Whether that is less than `LIMIT_BYTES`."""
        return self.grown_bytes < LIMIT_BYTES


def growth(rss_bytes: Sequence[int]) -> Growth:
    """The verdict over samples taken at constant intervals; raises `ValueError` for fewer than 20."""
    if len(rss_bytes) < 20:
        raise ValueError(f"expected at least 20 samples of memory, found {len(rss_bytes)}; run longer")
    part = int(len(rss_bytes) * SHARE)
    middle = len(rss_bytes) // 2
    return Growth(statistics.median(rss_bytes[middle : middle + part]), statistics.median(rss_bytes[-part:]))
