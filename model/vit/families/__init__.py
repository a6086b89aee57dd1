"""Families of timm models whose tokens can be merged, each with its adapter.

To add one, write its adapter (`model.vit.families.family.Family`) in a file and name it in `FAMILIES`.
"""

from __future__ import annotations

from typing import Any

from timm.layers.attention_pool import AttentionPoolLatent
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from model.errors import BackboneError
from model.vit.families.eva import Evas
from model.vit.families.family import Family, Rotary
from model.vit.families.vision_transformer import VisionTransformers

__all__ = ["FAMILIES", "Family", "Rotary", "check_block", "family_of"]

FAMILIES: dict[type[nn.Module], Family] = {VisionTransformer: VisionTransformers(), Eva: Evas()}

REFUSED: dict[str, str] = {
    "Swin": "attends within windows of a fixed grid, which has no place for fewer tokens",
    "ConvNeXt": "is a convolutional network: it has no tokens",
    "ResNet": "is a convolutional network: it has no tokens",
    "Beit": "adds a bias for every pair of grid positions to its attention; a merged token has no single position",
    "VisionTransformerRelPos": "adds a bias for every pair of grid positions to its attention; a merged token has no "
    "single position",
    "VisionTransformerSAM": "attends within windows of a fixed grid, which has no place for fewer tokens",
    "NaFlexVit": "takes images of any grid in one batch; merging needs one grid",
}
"""Why models whose class starts with the name cannot merge."""


def family_of(vit: Any, merges: bool = True) -> Family:
    """The adapter of a timm model; raises `BackboneError` if its tokens cannot be merged."""
    matching = [family for kind, family in FAMILIES.items() if isinstance(vit, kind) and _runs_as(vit, kind)]
    if not matching:
        raise BackboneError(f"backbone: expected a timm VisionTransformer or Eva, {_why_not(vit)}")
    if vit.dynamic_img_size:
        raise BackboneError(
            "backbone: expected a fixed grid, found dynamic_img_size=True; build it with an img_size and "
            "dynamic_img_size=False (--backbone_args dynamic_img_size=false)"
        )
    pool = vit.attn_pool
    if merges and not isinstance(pool, AttentionPoolLatent | None):
        raise BackboneError(
            f"backbone: {type(pool).__name__} pooling cannot weigh tokens by size; "
            "choose global_pool 'token', 'avg' or 'map', or keep_rate=1"
        )
    if merges and not isinstance(vit.patch_drop, nn.Identity | None):
        raise BackboneError(
            "backbone: expected all patches where tokens merge, found patch_drop_rate > 0; build it without, or use "
            "keep_rate=1"
        )
    return matching[0]


def check_block(family: Family, block: nn.Module, layer: int) -> None:
    """Raises `BackboneError` unless the block's halves can be called apart."""
    if not family.splits(block):
        kind = type(block).__name__ + (f" with {type(block.attn).__name__}" if hasattr(block, "attn") else "")
        raise BackboneError(
            f"block {layer}: expected {family.blocks}, found {kind}; its keys cannot be "
            "read. Leave that block out of merge_layers or choose another backbone"
        )


def _runs_as(vit: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether the model runs its blocks as its family does; a subclass may do something else in between."""
    return all(getattr(type(vit), name) is getattr(kind, name) for name in ("forward", "forward_features"))


def _why_not(vit: object) -> str:
    name = type(vit).__name__
    if isinstance(vit, str):
        return f"found the name {vit!r}; make the model first: timm.create_model({vit!r})"
    if not isinstance(vit, nn.Module):
        return f"found {'None' if vit is None else f'an object of type {name}'}; pass a model that timm made"
    if type(vit).__module__.startswith("torchvision."):
        return f"found torchvision's {name}; make timm's model of that shape and load the weights into it"
    for start, reason in REFUSED.items():
        if name.startswith(start):
            return f"found {name}, which {reason}"
    if isinstance(vit, tuple(FAMILIES)):
        return f"found {name}, which has a forward of its own that merging would pass over"
    inner = next((part for part in vit.children() if isinstance(part, tuple(FAMILIES))), None)
    if inner is not None:
        return f"found {name} around one; merge the {type(inner).__name__} inside it"
    return f"found {name}; models without one flat sequence of patch tokens have nothing to merge"
