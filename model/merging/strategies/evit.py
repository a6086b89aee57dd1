"""EViT: the tokens that the class token reads most stay, the others fuse into one.

After Liang et al., "Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations"
(ICLR 2022).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from model.merging.strategies.strategy import summed_size
from model.merging.strategies.view import View, require_values


def keep_attentive(
    view: View, score: Float[Tensor, "batch tokens"] | None, kept_count: int
) -> Int[Tensor, "batch tokens"]:
    """The `kept_count` - 1 tokens of highest class attention stay, in order; the others join the last one."""
    attention = require_values(view.attention)
    position = torch.arange(attention.shape[1], device=attention.device)
    stays = (attention.topk(kept_count - 1, dim=1).indices[:, :, None] == position).any(dim=1)
    return torch.where(stays, torch.cumsum(stays.int(), dim=1) - 1, kept_count - 1)


def fuse_inattentive(
    view: View, assignment: Float[Tensor, "batch kept tokens"]
) -> tuple[Float[Tensor, "batch kept dim"], Float[Tensor, "batch kept"]]:
    """The tokens that stay, then the sum of the others times their class attention; sizes add up.

    The attentions are not normalised, as in the paper: the fused token is short, and its LayerNorms lengthen it.
    """
    fused = assignment[:, -1:] * require_values(view.attention)[:, None, :]
    weight = torch.cat([assignment[:, :-1], fused], dim=1)
    return weight.to(view.tokens.dtype) @ view.tokens, summed_size(view, assignment)
