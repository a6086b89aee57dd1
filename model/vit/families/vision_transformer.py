"""timm's `VisionTransformer`: ViT, DeiT (distilled too), AugReg, DINOv2 with registers, SigLIP and others."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, ResPostBlock
from torch import Tensor, nn

from model.vit.attention import Attended, Reading, mix


class VisionTransformers:
    """Positions are added to the tokens once, so a merged token carries their mean by itself."""

    blocks = "timm's Block or ResPostBlock with Attention"

    def splits(self, block: nn.Module) -> bool:
        """Whether the halves of this block can be called apart."""
        return isinstance(block, Block | ResPostBlock) and isinstance(block.attn, Attention)

    def has_class_token(self, vit: Any) -> bool:
        """Whether the first token is a class token."""
        return bool(vit.has_class_token)

    def pools_prefix(self, vit: Any) -> bool:
        """Whether the pooling of the head reads the prefix tokens too."""
        return bool(vit.pool_include_prefix)

    def embed(
        self, vit: Any, images: Float[Tensor, "batch channels height width"]
    ) -> tuple[Float[Tensor, "batch all_tokens dim"], None]:
        """Tokens that enter the first block."""
        return vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images)))), None

    def whole(self, block: Any, tokens: Tensor, rotary: Tensor | None, bias: Tensor | None) -> Tensor:
        """timm's own block."""
        after: Tensor = block(tokens) if bias is None else block(tokens, attn_mask=bias)
        return after

    def attention_half(
        self, block: Any, tokens: Tensor, rotary: Tensor | None, bias: Tensor | None, reading: Reading
    ) -> Attended:
        """The block up to and including its first residual sum."""
        post_norm = isinstance(block, ResPostBlock)
        seen = tokens if post_norm else block.norm1(tokens)
        attn = block.attn
        parts = attn.qkv(seen).unflatten(2, (3, attn.num_heads, attn.head_dim)).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        query, key = attn.q_norm(query), attn.k_norm(key)
        update, *read = mix(attn, seen, query, key, value, bias, reading)
        keys = key.mean(dim=1)
        update = block.norm1(update) if post_norm else block.ls1(update)
        return Attended(tokens + block.drop_path1(update), keys, *read)

    def mlp_half(self, block: Any, tokens: Tensor) -> Tensor:
        """The rest of the block: MLP and second residual sum."""
        post_norm = isinstance(block, ResPostBlock)
        update = block.norm2(block.mlp(tokens)) if post_norm else block.ls2(block.mlp(block.norm2(tokens)))
        total: Tensor = tokens + block.drop_path2(update)
        return total
