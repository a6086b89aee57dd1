"""FreqMerge: a Vision Transformer that merges redundant tokens, its checkpoints and its engines."""

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
