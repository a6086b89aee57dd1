"""The interface of a strategy, and the default of each of its parts: ToMe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from model.merging.matching import match, penalised_similarity, weighted_merge
from model.merging.strategies.view import View

Score = Callable[[View], Float[Tensor, "batch tokens"] | None]
Assign = Callable[[View, Float[Tensor, "batch tokens"] | None, int], Int[Tensor, "batch tokens"]]
Combine = Callable[
    [View, Float[Tensor, "batch kept tokens"]], tuple[Float[Tensor, "batch kept dim"], Float[Tensor, "batch kept"]]
]


def unprotected(view: View) -> None:
    """No score: nothing is protected."""
    return None


def merge_similar(
    view: View, score: Float[Tensor, "batch tokens"] | None, kept_count: int
) -> Int[Tensor, "batch tokens"]:
    """Bipartite soft matching on the penalised similarity."""
    config = view.config
    similarity = penalised_similarity(
        view.features, score, config.alpha, clamp=config.cosine == "clamped", pair_score=config.pair_score
    )
    return match(similarity, view.features.shape[1] - kept_count)


def size_weighted_mean(
    view: View, assignment: Float[Tensor, "batch kept tokens"]
) -> tuple[Float[Tensor, "batch kept dim"], Float[Tensor, "batch kept"]]:
    """The mean of the tokens that join, weighted by their sizes, and the sum of the sizes."""
    return weighted_merge(view.tokens, view.size, assignment)


def summed_size(view: View, assignment: Float[Tensor, "batch kept tokens"]) -> Float[Tensor, "batch kept"]:
    """Patches inside each new token."""
    return (assignment @ view.size[:, :, None])[:, :, 0]


@dataclass(frozen=True)
class Strategy:
    """A named way to reduce tokens; what is not given is ToMe's (Bolya et al., ICLR 2023)."""

    score: Score = unprotected
    """How much each token is protected, 0..1, or None."""
    assign: Assign = merge_similar
    """The new token that every old one joins, given the score and how many are kept; -1 drops a token."""
    combine: Combine = size_weighted_mean
    """New tokens and their sizes, given the one-hot assignment of `model.merging.matching.assignment_matrix`."""
    weighs_size: bool = True
    """Whether later attention and pooling weigh a token by its size (proportional attention)."""
    needs_attention: bool = False
    """Whether the block has to compute `View.attention` and `View.importance`."""
    label: str = ""
    """What tables and plots call it."""
    role: Literal["method", "variant", "control"] = "method"
    """A published method, another frequency score, or a control that asks whether a score carries anything."""
    draws: bool = False
    """Whether the result depends on the seed."""
    exports: bool = False
    """Whether it exports as one graph without gather or scatter; baselines may use them."""
