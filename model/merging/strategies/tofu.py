"""ToFu's merge rule (MLERP): the mean of the tokens that join, as long as the longest of them.

After Kim et al., "Token Fusion: Bridging the Gap between Token Pruning and Token Merging" (WACV 2024):
an average is shorter than what it is made of, which shifts the distribution that later layers see. The matching is
ToMe's; ToFu's other half, pruning instead of merging in early blocks, is left out.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from model.merging.matching import weighted_merge
from model.merging.strategies.view import View

TINY = torch.finfo(torch.float32).tiny


def norm_preserving_mean(
    view: View, assignment: Float[Tensor, "batch kept tokens"]
) -> tuple[Float[Tensor, "batch kept dim"], Float[Tensor, "batch kept"]]:
    """The size-weighted mean of the tokens that join, lengthened to the longest of them, and the sum of their sizes."""
    tokens, size = weighted_merge(view.tokens, view.size, assignment)
    longest = (assignment * view.tokens.float().norm(dim=2)[:, None, :]).amax(dim=2)
    scale = longest / tokens.float().norm(dim=2).clamp(min=TINY)
    return (tokens.float() * scale[:, :, None]).to(tokens.dtype), size
