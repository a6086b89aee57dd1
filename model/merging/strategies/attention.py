"""Class attention as protection: what the class token reads is merged last.

In the spirit of EViT (Liang et al., ICLR 2022), used as a penalty on ToMe's similarity rather than to prune.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from model.merging.frequency import normalise
from model.merging.strategies.view import View, require_values


def class_attention(view: View) -> Float[Tensor, "batch tokens"]:
    """Attention from the class token, stretched to 0..1."""
    return normalise(require_values(view.attention))
