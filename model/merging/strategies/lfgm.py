"""The frequency score (LFGM) as protection: edges and detail stay, smooth regions merge.

The penalty with weight α is `model.merging.matching.penalised_similarity`, the same for every score.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from model.merging.strategies.view import View


def lfgm(view: View) -> Float[Tensor, "batch tokens"]:
    """Frequency score, pooled over the patches of each token."""
    return view.pooled(view.patch_score())
