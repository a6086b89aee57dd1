"""ToMe with class importance: tokens that matter to the class dominate the token they merge into.

After Seol, Roh & Chung, "Token Merging with Class Importance Score" (IECON 2023): ToMe's matching, then an average
weighted by the importance of each token. The importance is that of Fayyaz et al., "Adaptive Token Sampling for
Efficient Vision Transformers" (ECCV 2022): class attention times the norm of the value.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from model.merging.matching import weighted_merge
from model.merging.strategies.strategy import summed_size
from model.merging.strategies.view import View, require_values

TINY = torch.finfo(torch.float32).tiny


def importance_weighted_mean(
    view: View, assignment: Float[Tensor, "batch kept tokens"]
) -> tuple[Float[Tensor, "batch kept dim"], Float[Tensor, "batch kept"]]:
    """The mean of the tokens that join, weighted by their class importance, and the sum of their sizes."""
    importance = require_values(view.importance).clamp(min=TINY)  # an attention of exactly 0 would divide 0 by 0
    tokens, _ = weighted_merge(view.tokens, importance, assignment)
    return tokens, summed_size(view, assignment)
