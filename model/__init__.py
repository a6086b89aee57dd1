"""FreqMerge: a Vision Transformer that merges redundant tokens, its checkpoints and its engines."""

from model.checkpoint import load_checkpoint, save_checkpoint
from model.config import ModelConfig
from model.vit import FreqMergeOutput, FreqMergeViT, build

__all__ = ["FreqMergeOutput", "FreqMergeViT", "ModelConfig", "build", "load_checkpoint", "save_checkpoint"]
