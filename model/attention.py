"""One timm transformer block in two halves, with the keys that token merging needs.

timm's `Block.forward` gives neither its keys nor a place between attention and MLP, so the halves call
the block's own submodules. Blocks that do not merge run timm's `forward` untouched.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, ResPostBlock
from torch import Tensor, nn

from model.errors import BackboneError


class Attended(NamedTuple):
    """Residual stream after the attention half of a block, and what its attention knew."""

    tokens: Float[Tensor, "batch all_tokens dim"]
    keys: Float[Tensor, "batch all_tokens head_dim"]
    """Mean over heads."""
    received: Float[Tensor, "batch all_tokens"] | None
    """Attention received from the class token (mean over all queries where there is none), mean over heads."""
    importance: Float[Tensor, "batch all_tokens"] | None
    """The same, each head's attention times the norm of its value."""


def check_block(block: nn.Module, layer: int) -> None:
    """Raises `BackboneError` unless the block's halves can be called apart."""
    if not isinstance(block, Block | ResPostBlock) or not isinstance(block.attn, Attention):
        kind = type(block).__name__ + (f" with {type(block.attn).__name__}" if hasattr(block, "attn") else "")
        raise BackboneError(
            f"block {layer}: expected timm's Block or ResPostBlock with Attention, found {kind}; its keys cannot be "
            "read. Leave that block out of merge_layers or choose another backbone"
        )


def attention_half(
    block: Any, tokens: Tensor, bias: Tensor | None, *, from_class_token: bool, with_attention: bool
) -> Attended:
    """The block up to and including its first residual sum."""
    post_norm = isinstance(block, ResPostBlock)
    seen = tokens if post_norm else block.norm1(tokens)
    update, keys, *read = _attend(block.attn, seen, bias, from_class_token, with_attention)
    update = block.norm1(update) if post_norm else block.ls1(update)
    return Attended(tokens + block.drop_path1(update), keys, *read)


def mlp_half(block: Any, tokens: Tensor) -> Tensor:
    """The rest of the block: MLP and second residual sum."""
    post_norm = isinstance(block, ResPostBlock)
    update = block.norm2(block.mlp(tokens)) if post_norm else block.ls2(block.mlp(block.norm2(tokens)))
    total: Tensor = tokens + block.drop_path2(update)
    return total


def _attend(
    attn: Attention, x: Tensor, bias: Tensor | None, from_class_token: bool, with_attention: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    batch, tokens, _ = x.shape
    query, key, value = attn.qkv(x).unflatten(2, (3, attn.num_heads, attn.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
    query, key = attn.q_norm(query), attn.k_norm(key)
    dropout = attn.attn_drop.p if attn.training else 0.0
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
    mixed = attn.norm(mixed.transpose(1, 2).reshape(batch, tokens, attn.attn_dim))
    if attn.gate is not None:
        mixed = mixed * attn.gate(x).sigmoid()
    received = importance = None
    if with_attention:
        weights = _weights(query[:, :, :1] if from_class_token else query, key, attn.scale, bias)
        received = weights.mean(dim=(1, 2))
        importance = (weights * value.float().norm(dim=3)[:, :, None, :]).mean(dim=(1, 2))
    return attn.proj_drop(attn.proj(mixed)), key.mean(dim=1), received, importance


def _weights(query: Tensor, key: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """Attention weights [batch, heads, queries, keys] in float32."""
    logits = (query @ key.transpose(2, 3)).float() * scale
    if bias is not None:
        logits = logits + bias[:, :, : query.shape[2]].float()
    return torch.softmax(logits, dim=3)
