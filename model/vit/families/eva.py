"""timm's `Eva`: EVA, EVA-02 and what timm builds on them, such as DINOv3, Perception Encoder and RoPE-ViT."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import AttentionRope, apply_rot_embed_cat
from timm.models.eva import EvaAttention, EvaBlock, EvaBlockPostNorm
from torch import Tensor, nn

from model.vit.attention import Attended, Reading, mix
from model.vit.families.family import Rotary


class Evas:
    """Queries and keys turn with the position of their token; keys are matched as they are before they turn, so that
    similarity is one of content."""

    blocks = "timm's EvaBlock or EvaBlockPostNorm with EvaAttention or AttentionRope"

    def splits(self, block: nn.Module) -> bool:
        """Whether the halves of this block can be called apart."""
        return isinstance(block, EvaBlock | EvaBlockPostNorm) and isinstance(block.attn, EvaAttention | AttentionRope)

    def has_class_token(self, vit: Any) -> bool:
        """Whether the first token is a class token."""
        return vit.cls_token is not None

    def pools_prefix(self, vit: Any) -> bool:
        """Whether the pooling of the head reads the prefix tokens too: attention pooling does."""
        return vit.attn_pool is not None

    def embed(
        self, vit: Any, images: Float[Tensor, "batch channels height width"]
    ) -> tuple[Float[Tensor, "batch all_tokens dim"], Rotary]:
        """Tokens that enter the first block, and the rotary embedding of the patch tokens."""
        tokens, rotary = vit._pos_embed(vit.patch_embed(images))
        if rotary is not None:  # [layers, heads, patches, angles] where they are learned, else [patches, angles]
            rotary = rotary[:, None] if vit.rope_mixed else rotary[None, None, None]
        return vit.norm_pre(tokens), rotary

    def whole(self, block: Any, tokens: Tensor, rotary: Tensor | None, bias: Tensor | None) -> Tensor:
        """timm's own block."""
        after: Tensor = block(tokens, rope=rotary, attn_mask=bias)
        return after

    def attention_half(
        self, block: Any, tokens: Tensor, rotary: Tensor | None, bias: Tensor | None, reading: Reading
    ) -> Attended:
        """The block up to and including its first residual sum."""
        post_norm = isinstance(block, EvaBlockPostNorm)
        seen = tokens if post_norm else block.norm1(tokens)
        query, key, value = _projected(block.attn, seen)
        keys = key.mean(dim=1)
        query, key = (_turned(part, rotary, block.attn).type_as(value) for part in (query, key))
        shared = query.shape[1] // key.shape[1]  # grouped queries: heads that share one key and value
        if shared > 1:
            key, value = (part.repeat_interleave(shared, dim=1) for part in (key, value))
        update, *read = mix(block.attn, seen, query, key, value, bias, reading)
        update = block.norm1(update) if post_norm else _scaled(update, block.gamma_1)
        return Attended(tokens + block.drop_path1(update), keys, *read)

    def mlp_half(self, block: Any, tokens: Tensor) -> Tensor:
        """The rest of the block: MLP and second residual sum."""
        if isinstance(block, EvaBlockPostNorm):
            update = block.norm2(block.mlp(tokens))
        else:
            update = _scaled(block.mlp(block.norm2(tokens)), block.gamma_2)
        total: Tensor = tokens + block.drop_path2(update)
        return total


def _projected(attn: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [batch, heads, tokens, head_dim], normed and not yet turned."""
    if attn.qkv is None:
        parts = tuple(layer(x) for layer in (attn.q_proj, attn.k_proj, attn.v_proj))
    elif getattr(attn, "q_bias", None) is None:
        parts = attn.qkv(x).chunk(3, dim=2)
    else:  # the zero bias of the keys is a buffer, no parameter
        bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
        parts = F.linear(x, attn.qkv.weight, bias).chunk(3, dim=2)
    query, key, value = (part.unflatten(2, (-1, attn.head_dim)).transpose(1, 2) for part in parts)
    return attn.q_norm(query), attn.k_norm(key), value


def _turned(part: Tensor, rotary: Tensor | None, attn: Any) -> Tensor:
    """Queries or keys, those of the patch tokens turned by their positions."""
    if rotary is None:
        return part
    prefix, patches = part.tensor_split([attn.num_prefix_tokens], dim=2)
    return torch.cat([prefix, apply_rot_embed_cat(patches, rotary, half=attn.rotate_half)], dim=2)


def _scaled(update: Tensor, gamma: Tensor | None) -> Tensor:
    return update if gamma is None else gamma * update
