"""Tokens before the first merging block, computed once for all configs of the same weights on the same images."""

from __future__ import annotations

import itertools

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from model import FreqMergeViT
from model.engines.classifier import Classifier
from model.vit.merging_vit import FreqMergeOutput, Stem


class Stems:
    """Tokens before the first merging block, in main memory: made by the first config that needs them, for all."""

    def __init__(self, limit_bytes: int) -> None:
        self._left = limit_bytes
        self._stems: dict[tuple[int, int], Stem] = {}

    def of(self, model: FreqMergeViT, images: Tensor, batch: int) -> Stem:
        """Those of the batch of this number, whose normalised images these are."""
        key = min(model.config.merge_layers), batch
        if key in self._stems:
            return _moved(self._stems[key], images.device)
        made = model.stem(images)
        if (size := made.tokens.nbytes) <= self._left:
            self._left -= size
            self._stems[key] = _moved(made, torch.device("cpu"))
        return made


def _moved(stem: Stem, device: torch.device) -> Stem:
    return Stem(stem.layer, stem.tokens.to(device), None if stem.rotary is None else stem.rotary.to(device))


class Sharing(nn.Module):
    """A classifier for the batches of one set of images in order, which shares their stems with other configs."""

    def __init__(self, classifier: Classifier, stems: Stems) -> None:
        super().__init__()
        self.classifier = classifier
        self._stems = stems
        self._batches = itertools.count()

    def forward(self, images: UInt8[Tensor, "batch 3 native native"]) -> FreqMergeOutput:
        """The classifier's answer for the next batch."""
        pixels, model = self.classifier.input_stage(images), self.classifier.model
        return model.explain(pixels, stem=self._stems.of(model, pixels, next(self._batches)))
