"""Attention of one timm block, with the keys that token merging needs: what the families have in common."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


class Reading(NamedTuple):
    """What a merging block reads of its attention beside the keys."""

    from_class_token: bool
    """Attention of the first token; else the mean over all queries."""
    with_attention: bool
    """Whether anything is read at all."""


class Mixed(NamedTuple):
    """What an attention layer adds to the stream, and what it knew."""

    update: Float[Tensor, "batch all_tokens dim"]
    received: Float[Tensor, "batch all_tokens"] | None
    """Attention that each token receives, mean over heads."""
    importance: Float[Tensor, "batch all_tokens"] | None
    """The same, each head's attention times the norm of its value."""


class Attended(NamedTuple):
    """Residual stream after the attention half of a block, and what its attention knew."""

    tokens: Float[Tensor, "batch all_tokens dim"]
    keys: Float[Tensor, "batch all_tokens head_dim"]
    """Mean over heads."""
    received: Float[Tensor, "batch all_tokens"] | None
    """Attention received from the class token (mean over all queries where there is none), mean over heads."""
    importance: Float[Tensor, "batch all_tokens"] | None
    """The same, each head's attention times the norm of its value."""


def mix(
    attn: Any,
    x: Float[Tensor, "batch all_tokens dim"],
    query: Float[Tensor, "batch heads all_tokens head_dim"],
    key: Float[Tensor, "batch heads all_tokens head_dim"],
    value: Float[Tensor, "batch heads all_tokens head_dim"],
    bias: Tensor | None,
    reading: Reading,
) -> Mixed:
    """What timm's attention layer makes of its input and its queries, keys and values."""
    batch, tokens, _ = x.shape
    dropout = attn.attn_drop.p if attn.training else 0.0
    mixed = _attend(attn.fused_attn, query, key, value, bias, dropout)
    mixed = attn.norm(mixed.transpose(1, 2).reshape(batch, tokens, attn.num_heads * attn.head_dim))
    if attn.gate is not None:
        mixed = mixed * attn.gate(x).sigmoid()
    received = importance = None
    if reading.with_attention:
        weights = _weights(query[:, :, :1] if reading.from_class_token else query, key, attn.scale, bias)
        received = weights.mean(dim=(1, 2))
        importance = (weights * value.float().norm(dim=3)[:, :, None, :]).mean(dim=(1, 2))
    return Mixed(attn.proj_drop(attn.proj(mixed)), received, importance)


def _attend(fused: bool, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
    """Values mixed by attention, in torch's fused kernel or, as timm has it too, in single steps."""
    if fused:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
    logits = (query * query.shape[3] ** -0.5) @ key.transpose(2, 3)
    if bias is not None:
        logits = logits + bias
    return F.dropout(logits.softmax(dim=3), dropout) @ value


def _weights(query: Tensor, key: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """Attention weights [batch, heads, queries, keys] in float32."""
    # scaled first, as the attention itself does: the unscaled product of two half-precision tensors may overflow
    logits = ((query * scale) @ key.transpose(2, 3)).float()
    if bias is not None:
        logits = logits + bias[:, :, : query.shape[2]].float()
    return torch.softmax(logits, dim=3)
