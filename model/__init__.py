"""FreqMerge: a Vision Transformer that merges redundant tokens, its checkpoints and its engines.

The public names below are imported when they are first used (PEP 562): `import model`, and with it every module that
works without torch, is light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.checkpoint import load_checkpoint, save_checkpoint
    from model.config import ModelConfig
    from model.vit.merged import MergedViT, merge_tokens
    from model.vit.merging_vit import FreqMergeOutput, FreqMergeViT, build

__all__ = [
    "FreqMergeOutput",
    "FreqMergeViT",
    "MergedViT",
    "ModelConfig",
    "build",
    "load_checkpoint",
    "merge_tokens",
    "save_checkpoint",
]

_HOMES = {
    "FreqMergeOutput": "model.vit.merging_vit",
    "FreqMergeViT": "model.vit.merging_vit",
    "MergedViT": "model.vit.merged",
    "ModelConfig": "model.config",
    "build": "model.vit.merging_vit",
    "load_checkpoint": "model.checkpoint",
    "merge_tokens": "model.vit.merged",
    "save_checkpoint": "model.checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
