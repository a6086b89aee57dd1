"""timm models by name."""

from __future__ import annotations

import difflib
from typing import Any

import timm
from torch import nn

from model.errors import BackboneError

PATTERNS = ("vit_*", "deit*", "eva*", "beit3*")


def create(name: str, pretrained: bool = False, **arguments: Any) -> nn.Module:
    """timm's model of that name, freshly initialised, or with timm's published weights if `pretrained`.

    Raises `BackboneError` if timm does not know the name or refuses the arguments.
    """
    if not timm.is_model(name.split(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(list(PATTERNS)), n=3)
        hint = f"; close names: {', '.join(near)}" if near else "; timm.list_models('*vit*') lists the names"
        raise BackboneError(f"backbone: expected a timm model name, found {name!r}{hint}")
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **arguments)
    except (TypeError, AssertionError, ValueError) as error:
        raise BackboneError(
            f"backbone {name}: expected a timm VisionTransformer or Eva, which alone can merge, and arguments that "
            f"fit it; timm refuses {arguments}: {error}"
        ) from error
    return model
