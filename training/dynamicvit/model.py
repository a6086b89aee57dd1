"""DynamicViT: a ViT that drops tokens by small trained predictors.

Rao et al., "DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification" (NeurIPS 2021), written
from the paper (sections 3.2 to 3.4). While training, dropped tokens stay and are masked out of the attention, so
that gradients reach the decision; in evaluation mode they are removed.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, field_validator
from timm.layers.attention_pool import AttentionPoolLatent
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model import FreqMergeViT, ModelConfig, build
from model.config import Frozen
from model.errors import BackboneError, ConfigError

LEAK = 1e-6
"""Weight that a dropped token keeps beside 1 for a kept one, where a logarithm must stay finite."""


class DynamicConfig(Frozen):
    """Where tokens are dropped and how many stay; the backbone has its own `ModelConfig`.

    rho = 0.7 on a ViT-Small is the paper's 2.9 GMACs.
    """

    rho: float = Field(0.7, gt=0, le=1, description="share of patch tokens kept by each stage: rho, rho², rho³ in all")
    predictor_layers: tuple[int, ...] = Field(
        (), description="0-based blocks with a predictor before them; empty: at 1/4, 1/2 and 3/4 of the depth (3 6 9)"
    )

    @field_validator("predictor_layers")
    @classmethod
    def _ascending(cls, layers: tuple[int, ...]) -> tuple[int, ...]:
        if any(layer < 0 for layer in layers) or list(layers) != sorted(set(layers)):
            raise ValueError("expected ascending block indices, each at least 0 and named once")
        return layers

    def layers(self, depth: int) -> tuple[int, ...]:
        """The blocks with a predictor before them; raises `ConfigError` if one lies outside the depth."""
        chosen = self.predictor_layers or tuple(sorted({max(1, depth * quarter // 4) for quarter in (1, 2, 3)}))
        outside = [layer for layer in chosen if layer >= depth]
        if outside:
            raise ConfigError(
                f"predictor_layers: expected block indices 0..{depth - 1} for a backbone of depth {depth}, "
                f"found {outside}"
            )
        return chosen

    def shares(self, depth: int) -> tuple[float, ...]:
        """Share of all patch tokens left after each predictor: rho, rho², …"""
        return tuple(self.rho**stage for stage in range(1, len(self.layers(depth)) + 1))


class Masked(NamedTuple):
    """Answer in training mode: no token is gone, the dropped ones are masked."""

    logits: Float[Tensor, "batch classes"]
    tokens: Float[Tensor, "batch patches dim"]
    """Patch tokens after the final norm."""
    masks: tuple[Float[Tensor, "batch patches"], ...]
    """1 where a token is still there after each predictor, else 0; differentiable."""


class Pruned(NamedTuple):
    """Answer in evaluation mode: dropped tokens are gone."""

    logits: Float[Tensor, "batch classes"]
    kept_patches: Int[Tensor, "batch left"]
    """Patches left at the end, ascending."""


class Predictor(nn.Module):
    """Log-probabilities of dropping (0) and keeping (1) each token, from itself and the mean of those left.

    Section 3.2 with C' = C/2: one MLP makes the local half, another the features whose mean over the tokens
    still there is the global half, a third turns both into two logits.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())  # both halves in one product
        self.decide = nn.Sequential(
            nn.Linear(dim, dim // 2), nn.GELU(), nn.Linear(dim // 2, dim // 4), nn.GELU(), nn.Linear(dim // 4, 2)
        )

    def forward(
        self, tokens: Float[Tensor, "batch patches dim"], mask: Float[Tensor, "batch patches"]
    ) -> Float[Tensor, "batch patches 2"]:
        """Float32 whatever the tokens' type."""
        own, shared = self.features(tokens).chunk(2, dim=2)
        share = mask / (mask.sum(dim=1, keepdim=True) + LEAK)
        mean = share.to(shared.dtype)[:, None, :] @ shared
        logits = self.decide(torch.cat([own, mean.expand_as(own)], dim=2))
        return F.log_softmax(logits.float(), dim=2)


class DynamicViT(nn.Module):
    """The plain ViT of a `FreqMergeViT` with a predictor before some of its blocks.

    The backbone's parameters keep their names (`vit.…`), the predictors add `predictors.…`. Raises
    `BackboneError` for pooling that cannot leave masked tokens out and `ConfigError` for layers outside the
    depth.
    """

    def __init__(self, base: FreqMergeViT, dynamic: DynamicConfig) -> None:
        super().__init__()
        self.vit: Any = _checked(base)
        self.config: ModelConfig = base.config.replace(keep_rate=1.0)
        """Of the backbone: nothing merges."""
        self.dynamic = dynamic
        self.layers = dynamic.layers(len(self.vit.blocks))
        """Blocks with a predictor before them."""
        self.shares = dynamic.shares(len(self.vit.blocks))
        """Share of all patch tokens that is to be left after each predictor."""
        self.predictors = nn.ModuleList([Predictor(self.vit.embed_dim) for _ in self.layers])

    @property
    def schedule(self) -> tuple[int, ...]:
        """Patch tokens in each block of evaluation mode."""
        patches: int = self.vit.patch_embed.num_patches
        counts = [patches, *(tokens_left(patches, share) for share in self.shares)]
        return tuple(counts[sum(layer >= at for at in self.layers)] for layer in range(len(self.vit.blocks)))

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Masked | Pruned:
        """`Masked` in training mode, drawn from torch's global generator; `Pruned` in evaluation mode."""
        x = self.vit.norm_pre(self.vit._pos_embed(self.vit.patch_embed(images)))
        return self._masked(x) if self.training else self._pruned(x)

    def _masked(self, x: Tensor) -> Masked:
        vit = self.vit
        mask = torch.ones(x.shape[0], vit.patch_embed.num_patches, device=x.device)
        masks: list[Tensor] = []
        for layer, block in enumerate(vit.blocks):
            if layer in self.layers:
                choice = self.predictors[len(masks)](x[:, vit.num_prefix_tokens :], mask)
                mask = mask * F.gumbel_softmax(choice, hard=True)[:, :, 1]  # sections 3.2 and 3.3
                masks.append(mask)
            bias = masking_bias(self._with_prefix(mask), x.dtype) if masks else None
            x = checkpoint(block, x, bias, use_reentrant=False) if vit.grad_checkpointing else block(x, attn_mask=bias)
        x = vit.norm(x)
        return Masked(self._head(x, self._with_prefix(mask)), x[:, vit.num_prefix_tokens :], tuple(masks))

    def _pruned(self, x: Tensor) -> Pruned:
        vit = self.vit
        patches = vit.patch_embed.num_patches
        kept_patches = torch.arange(patches, device=x.device).expand(x.shape[0], -1)
        for layer, block in enumerate(vit.blocks):
            if layer in self.layers:
                stage = self.layers.index(layer)
                x, kept_patches = self._dropped(x, kept_patches, stage, tokens_left(patches, self.shares[stage]))
            x = block(x)
        logits: Tensor = vit.forward_head(vit.norm(x))
        return Pruned(logits, kept_patches)

    def _dropped(self, x: Tensor, kept_patches: Tensor, stage: int, left: int) -> tuple[Tensor, Tensor]:
        """Only the `left` patch tokens that are most likely kept, in their old order (section 3.4)."""
        if left == kept_patches.shape[1]:
            return x, kept_patches
        prefix, tokens = x.tensor_split([self.vit.num_prefix_tokens], dim=1)
        keeping = self.predictors[stage](tokens, torch.ones_like(kept_patches, dtype=torch.float32))[:, :, 1]
        index = keeping.topk(left, dim=1).indices.sort(dim=1).values
        tokens = tokens.gather(1, index[:, :, None].expand(-1, -1, tokens.shape[2]))
        return torch.cat([prefix, tokens], dim=1), kept_patches.gather(1, index)

    def _with_prefix(self, mask: Tensor) -> Tensor:
        return torch.cat([mask.new_ones(mask.shape[0], self.vit.num_prefix_tokens), mask], dim=1)

    def _head(self, x: Tensor, mask: Tensor) -> Tensor:
        """timm's classifier head, masked tokens left out of its pooling."""
        vit = self.vit
        logits: Tensor
        if vit.global_pool == "token":
            logits = vit.forward_head(x)
            return logits
        included = 0 if vit.pool_include_prefix else vit.num_prefix_tokens
        x, weight = x[:, included:], mask[:, included:] + LEAK
        if vit.attn_pool is None:
            share = weight / weight.sum(dim=1, keepdim=True)
            pooled = (share.to(x.dtype)[:, None, :] @ x)[:, 0]
        else:
            pooled = vit.attn_pool(x, attn_mask=weight.log().to(x.dtype)[:, None, None, :])
        logits = vit.head(vit.head_drop(vit.fc_norm(pooled)))
        return logits


def tokens_left(patches: int, share: float) -> int:
    """Patch tokens left: the floor of share · patches (section 3.4), at least 1."""
    return max(1, math.floor(patches * share + 1e-9))  # 0.7² · 100 is 48.99… in binary


def masking_bias(mask: Float[Tensor, "batch tokens"], dtype: torch.dtype) -> Float[Tensor, "batch 1 tokens tokens"]:
    """Attention bias that hides the tokens whose mask is 0 from all others (section 3.3).

    The paper multiplies exp(q·k) by G, where G is the key's mask and 1 on the diagonal. Adding log(G + leak) to
    the logits is the same, keeps the gradient at G = 0 (leaked weight / leak = the weight that the token would
    have had), and lets any block of timm and any fused attention kernel serve.
    """
    own = torch.eye(mask.shape[1], device=mask.device)
    shown = own + (1 - own) * mask[:, None, None, :]
    return (shown + LEAK).log().to(dtype)


def create(model_config: ModelConfig, dynamic: DynamicConfig, *, drop_path: float = 0.0) -> DynamicViT:
    """A freshly initialised DynamicViT; see `model.build` for `drop_path` and the errors."""
    return DynamicViT(build(model_config.replace(keep_rate=1.0), drop_path=drop_path), dynamic)


def _checked(base: FreqMergeViT) -> Any:
    vit: Any = base.vit
    if not isinstance(vit, VisionTransformer):
        raise BackboneError(f"backbone: DynamicViT expects a timm VisionTransformer, found {type(vit).__name__}")
    if not isinstance(vit.attn_pool, AttentionPoolLatent | None) or vit.global_pool not in ("token", "avg", "map"):
        raise BackboneError(
            f"backbone: DynamicViT cannot leave masked tokens out of {vit.global_pool!r} pooling; choose global_pool "
            "'token', 'avg' or 'map'"
        )
    if not isinstance(vit.patch_drop, nn.Identity):
        raise BackboneError("patch_drop: DynamicViT drops tokens itself; build its backbone without patch_drop")
    return vit
