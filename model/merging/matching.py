"""Bipartite soft matching with a penalty, and merging by one assignment matrix.

After Bolya et al., "Token Merging: Your ViT But Faster" (ICLR 2023), sections 3 and D, written from
the paper. Tokens alternate: odd patch tokens are sources, even ones destinations; the most similar
sources merge into their best destination; sources that stay keep their order and the destinations
follow. Only comparisons, sorting by top-k and matrix products are used, all of static size, so that
the same code is one TensorRT graph.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

# Types of this file: a `row` says for every token of the old sequence which token of the new one it joins.


def penalised_similarity(
    features: Float[Tensor, "batch tokens dim"],
    score: Float[Tensor, "batch tokens"] | None,
    alpha: float,
    clamp: bool = False,
    pair_score: Literal["max", "mean"] = "max",
) -> Float[Tensor, "batch sources destinations"]:
    """Cosine of every source with every destination, times 1 - alpha · the larger (or the mean) of their scores.

    Float32. `score` is in 0..1 and protects; None or alpha = 0 leaves the cosine of ToMe. A negative
    cosine is raised towards 0 by the penalty, never above an unprotected positive one; with `clamp` it is 0
    from the start.
    """
    unit = F.normalize(features.float(), dim=-1)
    cosine = unit[:, 1::2] @ unit[:, 0::2].transpose(1, 2)
    if clamp:
        cosine = cosine.clamp(min=0)
    if score is None or alpha == 0:
        return cosine
    source, destination = score[:, 1::2, None], score[:, None, 0::2]
    protect = torch.maximum(source, destination) if pair_score == "max" else (source + destination) / 2
    return cosine * (1 - alpha * protect)


def match(similarity: Float[Tensor, "batch sources destinations"], merged: int) -> Int[Tensor, "batch tokens"]:
    """The new token that every old token joins, when the `merged` most similar sources merge.

    New order: sources that stay, in order, then all destinations. 0 <= merged <= sources.
    """
    batch, sources, destinations = similarity.shape
    # topk(1), not max: torch 2.11's inductor miscompiles the index of a maximum that it fuses with the penalty (CPU)
    best, partner = (top[:, :, 0] for top in similarity.topk(1, dim=2))
    position = torch.arange(sources, device=similarity.device)
    leaving = (best.topk(merged, dim=1).indices[:, :, None] == position).any(dim=1)
    # counted, not cumsum, which TensorRT would run as a loop with one step per token
    before = position < position[:, None]
    stays = (before & ~leaving[:, None, :]).int().sum(dim=2)
    source_row = torch.where(leaving, partner + (sources - merged), stays)
    destination_row = torch.arange(destinations, device=similarity.device) + (sources - merged)
    return interleave(source_row, destination_row.expand(batch, -1))


def interleave(
    sources: Int[Tensor, "batch sources"], destinations: Int[Tensor, "batch destinations"]
) -> Int[Tensor, "batch tokens"]:
    """One value per token from those of the odd (source) and even (destination) tokens."""
    pairs = torch.stack([destinations[:, : sources.shape[1]], sources], dim=2).flatten(1)
    return torch.cat([pairs, destinations[:, sources.shape[1] :]], dim=1)


def assignment_matrix(row: Int[Tensor, "batch tokens"], kept_count: int) -> Float[Tensor, "batch kept tokens"]:
    """One-hot columns: entry (k, t) is 1 where old token t joins new token k; a row of -1 joins none."""
    return (row[:, None, :] == torch.arange(kept_count, device=row.device)[None, :, None]).float()


def weighted_merge(
    tokens: Float[Tensor, "batch tokens dim"],
    size: Float[Tensor, "batch tokens"],
    assignment: Float[Tensor, "batch kept tokens"],
) -> tuple[Float[Tensor, "batch kept dim"], Float[Tensor, "batch kept"]]:
    """Size-weighted mean of the tokens that join, and the sum of their sizes.

    The weights are normalised before the product, so that half precision cannot overflow.
    """
    weight = assignment * size[:, None, :]
    total = weight.sum(dim=2)
    return (weight / total[:, :, None]).to(tokens.dtype) @ tokens, total


def merge_rotary(
    rotary: Float[Tensor, "layers #batch heads tokens angles"],
    size: Float[Tensor, "batch tokens"],
    assignment: Float[Tensor, "batch kept tokens"],
) -> Float[Tensor, "layers batch heads kept angles"]:
    """Size-weighted mean of the rotary embeddings of the tokens that join, float32.

    Attention logits are linear in the sines and cosines of query and key. So the logit of two merged tokens is the
    mean of their logits over all pairs of the patches that they hold, where one position would have to be invented.
    """
    weight = assignment * size[:, None, :]
    share = weight / weight.sum(dim=2, keepdim=True)
    return share[None, :, None] @ rotary.float()


def ownership(source_map: Int[Tensor, "batch patches"], tokens: int) -> Float[Tensor, "batch tokens patches"]:
    """One-hot columns: entry (t, p) is 1 where token t owns patch p."""
    return assignment_matrix(source_map, tokens)


def follow(source_map: Int[Tensor, "batch patches"], row: Int[Tensor, "batch tokens"]) -> Int[Tensor, "batch patches"]:
    """The source map after a merge: the owner of every patch, moved to the token it joined."""
    # a product instead of gather, which falls out of a TensorRT engine when the batch is dynamic;
    # owners of dropped patches (-1) match no column, so the shift by one keeps them at -1
    owned = ownership(source_map, row.shape[1])
    return ((row + 1).float()[:, None, :] @ owned)[:, 0].round().to(source_map.dtype) - 1


def unmerge(
    values: Float[Tensor, "batch tokens dim"], source_map: Int[Tensor, "batch patches"]
) -> Float[Tensor, "batch patches dim"]:
    """Every patch with the value of the token that owns it; zeros where none does."""
    return ownership(source_map, values.shape[1]).to(values.dtype).transpose(1, 2) @ values


def pool_over_patches(
    values: Float[Tensor, "batch patches"], source_map: Int[Tensor, "batch patches"], tokens: int
) -> Float[Tensor, "batch tokens"]:
    """Mean over the patches that each token owns."""
    owned = ownership(source_map, tokens)
    return (owned @ values.float()[:, :, None])[:, :, 0] / owned.sum(dim=2).clamp(min=1)
